"""The parts of gpu_check.py: wheels of what a Python lacks, posters in pieces, the items and their goals."""
