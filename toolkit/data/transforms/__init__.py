"""Convert encoded images to pixels of one size: decoding, crops, geometry, normalisation."""
