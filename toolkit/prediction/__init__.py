"""``posters predict`` for images, folders and shard sets, and the Python interface."""
