"""`accelerate launch launch/predict.py ...` runs `posters predict ...` in every process of the launch."""

import sys

from toolkit.cli.main import run

if __name__ == "__main__":
    run(["predict", *sys.argv[1:]])
