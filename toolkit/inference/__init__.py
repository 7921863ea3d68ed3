"""Compute outputs of models with PyTorch or ONNX, for images or for whole splits."""
