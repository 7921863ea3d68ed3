"""`accelerate launch launch/evaluate.py ...` starts several processes. Each of them runs `posters evaluate ...`."""

import sys

from toolkit.cli.main import run

if __name__ == "__main__":
    run(["evaluate", *sys.argv[1:]])
