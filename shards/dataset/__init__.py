"""Shard sets on disk or at a URL: labels, indexes, sample tables, the manifest, and the node's cache."""
