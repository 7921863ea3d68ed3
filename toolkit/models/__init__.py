"""Build networks and their heads, freeze parts of them, average their weights, and wrap them for training."""
