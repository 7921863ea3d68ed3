"""Forward passes without gradients, with PyTorch or ONNX, over images or whole splits."""
