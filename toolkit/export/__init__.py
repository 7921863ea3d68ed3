"""A model as one file for other runtimes, on a hub, or from an earlier script."""
