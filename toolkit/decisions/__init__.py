"""From logits to named labels: calibration and thresholds, chosen on validation. No torch."""
