"""Multi-label metrics of arrays, confidence intervals, and baselines. The package does not import torch."""
