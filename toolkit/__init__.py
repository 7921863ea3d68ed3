"""Training, evaluation and prediction of multi-label image classifiers from WebDataset shards."""
