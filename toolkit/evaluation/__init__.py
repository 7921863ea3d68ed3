"""Figures of a model on a split, and decisions that are chosen again."""
