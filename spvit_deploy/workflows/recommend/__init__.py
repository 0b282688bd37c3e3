"""The deployment answer: what to serve a model with on this host."""
