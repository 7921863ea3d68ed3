"""Read and check the posters of a user, and find duplicate posters."""
