"""Search for gates, and training: the supernet, budgets, fine-tuning."""
