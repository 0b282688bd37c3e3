"""Data sets, image decoding, transforms, sampling and class names."""
