"""Options of the commands that need no torch."""
