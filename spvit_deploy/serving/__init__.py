"""Serving with NVIDIA Triton: model repositories, the server, its client, load tests."""
