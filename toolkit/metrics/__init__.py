"""Multi-label metrics on arrays, their intervals and baselines. No torch."""
