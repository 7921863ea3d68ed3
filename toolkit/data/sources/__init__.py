"""Sources of encoded images: shard readers, image files, open file handles, prefetched shards."""
