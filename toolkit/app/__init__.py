"""``posters app``: a page in the browser that names the genres of posters and shows why."""
