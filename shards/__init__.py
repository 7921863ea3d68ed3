"""Preprocessing: make WebDataset shards, their indexes and a manifest from posters and a CSV. torch is not imported."""
