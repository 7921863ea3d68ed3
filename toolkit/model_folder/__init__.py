"""The folder that holds a trained model: written, read, described by its card."""
