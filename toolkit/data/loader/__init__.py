"""From samples to batches on the device: threads, buffers, damaged images, timing."""
