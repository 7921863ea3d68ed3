"""`accelerate launch launch/train.py ...` runs `posters train ...` in every process of the launch."""

import sys

from toolkit.cli.main import run

if __name__ == "__main__":
    run(["train", *sys.argv[1:]])
