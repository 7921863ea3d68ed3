"""``python -m toolkit`` is the same as ``posters``."""

from toolkit.cli.main import run

if __name__ == "__main__":
    run()
