"""``posters audit``: how much a model uses the text of posters, measured on posters with and without their text."""
