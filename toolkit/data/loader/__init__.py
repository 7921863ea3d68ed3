"""Load batches to the device: threads, buffers, damaged images, timing."""
