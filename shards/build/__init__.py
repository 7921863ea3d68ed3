"""``posters shards``: posters and a CSV become a shard set; tars of other tools get an index; sets are checked."""
