"""Choose calibration and thresholds on validation, and apply them to logits. The package does not import torch."""
