"""Draw HTML pages and contact sheets in one common style."""
