"""The posters and CSVs of a user: read them, check them, compare posters with each other."""
