"""Limits for reading from servers. This module does not import an HTTP library."""

#: Shortest time limit of one request in seconds, also if the timeout is 0, which means one try.
MIN_REQUEST_SECONDS = 5.0


class TooMuch(OSError):
    """A body with more bytes than expected."""
