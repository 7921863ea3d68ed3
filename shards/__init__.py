"""Preprocessing of posters: download, clean and pack them into WebDataset shards. This package never imports torch."""
