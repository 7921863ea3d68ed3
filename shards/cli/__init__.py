"""Command-line functions of the commands that need no torch."""
