"""What the runtimes that start from an ONNX graph share."""
