"""Read samples of shards, in the order of a plan, and produce batches of pixels."""
