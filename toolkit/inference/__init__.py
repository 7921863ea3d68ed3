"""Forward passes without gradients: of PyTorch or ONNX, over images or whole splits."""
