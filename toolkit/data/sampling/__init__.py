"""The samples of each rank and update: permutations, repeats, random numbers per sample. Reads no files."""
