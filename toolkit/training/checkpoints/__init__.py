"""Checkpoints, resuming, and initial weights from files."""
