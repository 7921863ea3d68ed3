#!/usr/bin/env bash
# One command that checks a GPU and measures what this project promises of one; on a CPU, a tiny rehearsal of it.
#   bash tests/bench/gpu_check.sh [--data DIR] [--wheels DIR] [--out DIR] [--minutes 9] [--items A,B] [--tiny]
# It needs no network, pip, make or virtual environment: only this machine's python3 with torch (or PYTHON=...).
set -euo pipefail
exec "${PYTHON:-python3}" "$(dirname "$0")/gpu_check.py" "$@"
