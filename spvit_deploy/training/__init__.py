"""One training loop: optimizer, checkpoints and resuming, distillation, LoRA, logs."""
