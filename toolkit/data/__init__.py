"""From shards on disk to batches of pixels: plan → reader → transform → loader."""
