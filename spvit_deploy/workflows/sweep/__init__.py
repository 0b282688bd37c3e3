"""A model at several budgets: trials side by side on Ray Tune, and the frontier to pick from."""
