"""Read shards and produce batches of pixels: plan → reader → transform → loader."""
