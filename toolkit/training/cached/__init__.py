"""Training on features of a frozen backbone, computed once and kept."""
