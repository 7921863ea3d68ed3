"""Posters and tables of genres as users have them: read, checked, compared with each other."""
