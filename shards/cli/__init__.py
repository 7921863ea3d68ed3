"""The functions that run those commands that do not need torch."""
