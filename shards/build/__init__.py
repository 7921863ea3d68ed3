"""``posters shards``: build a shard set from posters and a CSV, index tars of other tools, verify shard sets."""
