"""For all tests."""

from __future__ import annotations

import signal

# Whoever starts a shell job in the background has its Ctrl-C ignored, and every process below inherits that: the tests
# that press Ctrl-C in a child would then wait for ever. A handler of our own is reset to the default in children.
signal.signal(signal.SIGINT, signal.default_int_handler)
