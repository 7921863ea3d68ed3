"""``posters audit``: how much a model uses the text of posters, measured with raw and cleaned posters."""
