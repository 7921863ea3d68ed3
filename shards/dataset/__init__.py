"""A shard set on disk or at a URL: labels, indexes, tables of samples, the manifest, the node's cache."""
