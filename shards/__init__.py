"""Preprocessing: posters and a CSV in, WebDataset shards with an index and a manifest out. Never imports torch."""
