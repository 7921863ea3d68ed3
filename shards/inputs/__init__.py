"""Read and check the posters and CSVs of a user, and find duplicate posters."""
