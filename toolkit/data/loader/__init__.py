"""Decode batches in threads and copy them to the device. Handle damaged images and measure times."""
