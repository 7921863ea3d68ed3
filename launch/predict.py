"""`accelerate launch launch/predict.py ...` starts several processes. Each of them runs `posters predict ...`."""

import sys

from toolkit.cli.main import run

if __name__ == "__main__":
    run(["predict", *sys.argv[1:]])
