"""Evaluate a model on a split, and choose its thresholds and calibration again."""
