"""Train models: the loop of search and fine-tuning, its optimizer, checkpoints and logs."""
