"""The commands that do not need torch."""
