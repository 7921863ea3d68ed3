"""What a server may make us wait for and hold, for all who read from one. It loads no HTTP library."""

#: The least of seconds that one request may take: a patience of 0 means one try.
MIN_REQUEST_SECONDS = 5.0


class TooMuch(OSError):
    """A body with more bytes than were asked for."""
