"""``python -m toolkit`` is the same as ``posters``."""

from toolkit.cli import run

if __name__ == "__main__":
    run()
