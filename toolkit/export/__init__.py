"""Export a model to a file for other runtimes, upload it to a hub, or convert a checkpoint of the earlier script."""
