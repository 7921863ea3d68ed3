"""``posters app``: a web page that shows the genres of posters and heat maps."""
