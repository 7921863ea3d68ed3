"""Compute the order of samples, the samples of each rank and update, and the random numbers of each sample."""
