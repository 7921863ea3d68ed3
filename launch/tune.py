"""`accelerate launch launch/tune.py ...` runs `posters tune ...` in every process of the launch."""

import sys

from toolkit.cli.main import run

if __name__ == "__main__":
    run(["tune", *sys.argv[1:]])
