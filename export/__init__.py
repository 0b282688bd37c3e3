"""Export: trace a model, write it in a format, and verify that its outputs match."""
