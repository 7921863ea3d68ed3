"""`accelerate launch launch/tune.py ...` starts several processes. Each of them runs `posters tune ...`."""

import sys

from toolkit.cli.main import run

if __name__ == "__main__":
    run(["tune", *sys.argv[1:]])
