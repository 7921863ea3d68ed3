"""Limits for reading from servers. This module does not import an HTTP library."""

#: Shortest time limit of one request in seconds. It is also used if the user's timeout is 0, which means one try.
MIN_REQUEST_SECONDS = 5.0


class TooMuch(OSError):
    """A response body has more bytes than expected."""
