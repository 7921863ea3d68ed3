"""Read and check the posters and tables of a user, and find duplicate posters."""
