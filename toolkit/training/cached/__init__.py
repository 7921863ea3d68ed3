"""Train a head on features of a frozen backbone. The features are computed once and saved."""
