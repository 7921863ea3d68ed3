"""Compute the samples of each rank and update: permutations, repeats, and random numbers per sample."""
