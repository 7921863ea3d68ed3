"""Run tasks on all cores of this machine, or on the workers of a Dask scheduler."""
