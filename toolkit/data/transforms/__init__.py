"""Convert encoded images to squares of pixels: decode, crop, resize and normalise."""
