"""Code of ``posters shards``: build a shard set, index the tars of another tool, and verify a shard set."""
