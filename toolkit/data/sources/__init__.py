"""Read encoded images from shards and image files. Cache open files and prefetch remote shards."""
