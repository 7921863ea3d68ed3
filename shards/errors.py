"""The one error that users see: a line that says what, where and how to mend it."""


class UserError(Exception):
    """Bad input or a bad environment, explained in one line.

    Command-line entry points print ``error: <message>`` and exit with status 2; no traceback.
    Library callers may catch it. Anything else that escapes is a bug of ours and keeps its traceback.
    """

    status = 2
    """Exit status. Another one for what is nobody's bad input."""


def one_line(error: object) -> str:
    """An exception's (or any) text folded into one line."""
    return " ".join(str(error).split()) or type(error).__name__
