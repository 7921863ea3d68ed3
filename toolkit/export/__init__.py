"""Export a model to one file for other runtimes, upload it to a hub, or import it from an earlier script."""
