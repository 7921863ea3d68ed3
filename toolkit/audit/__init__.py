"""``posters audit``: how much a model reads of a poster's text, by raw and cleaned posters."""
