"""``posters predict``: single images, folders, whole shard sets, and the Python interface."""
