"""What every runtime, and every family, must pass."""
