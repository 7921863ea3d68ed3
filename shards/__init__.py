"""Preprocessing: make WebDataset shards with indexes and a manifest from posters and a CSV. Never imports torch."""
