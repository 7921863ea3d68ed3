"""`posters compare`: one page that compares several models on the same posters."""
