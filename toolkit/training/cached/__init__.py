"""Training on features of a frozen backbone, which are computed once and saved."""
