"""PyTorch: eager, compiled, and exported programs."""
