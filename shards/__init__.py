"""Download posters, remove their text and pack them into WebDataset shards. This package never imports torch."""
