"""`accelerate launch launch/train.py ...` starts several processes. Each of them runs `posters train ...`."""

import sys

from toolkit.cli.main import run

if __name__ == "__main__":
    run(["train", *sys.argv[1:]])
