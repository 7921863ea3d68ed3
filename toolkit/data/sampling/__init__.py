"""Which rank sees which sample when: permutations, repeats, random numbers per sample. No files."""
