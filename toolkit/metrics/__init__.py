"""Multi-label metrics on arrays, their confidence intervals, and baselines. Does not import torch."""
