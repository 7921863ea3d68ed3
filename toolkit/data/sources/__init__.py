"""Bytes of samples: readers of shards, open files, shards that are fetched ahead."""
