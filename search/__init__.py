"""The search: supernet, gates, budgets, and the projection of gates onto a budget."""
