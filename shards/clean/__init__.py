"""Code of ``posters clean``: remove the text from the posters of a CSV, and write a report."""
