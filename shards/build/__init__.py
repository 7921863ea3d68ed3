"""Code of ``posters shards``: build a set of shards, write indexes for tars of other tools, and verify a set."""
