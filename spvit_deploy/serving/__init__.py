"""Models in NVIDIA's Triton Inference Server: its repositories, its server, loads on it."""
