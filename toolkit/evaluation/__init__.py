"""Evaluate a model on a split (evaluate.py), and choose its thresholds and calibration again (tune.py)."""
