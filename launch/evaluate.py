"""`accelerate launch launch/evaluate.py ...` runs `posters evaluate ...` in every process of the launch."""

import sys

from toolkit.cli.main import run

if __name__ == "__main__":
    run(["evaluate", *sys.argv[1:]])
