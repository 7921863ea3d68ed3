"""Make a shard set from tars that another tool wrote: find, read and label them, then write indexes and a manifest."""
