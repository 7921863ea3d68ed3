"""What a run leaves to go on from, and what may change when it does."""
