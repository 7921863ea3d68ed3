"""Export a model to a file for other runtimes, upload it to a hub, or import a checkpoint of another program."""
