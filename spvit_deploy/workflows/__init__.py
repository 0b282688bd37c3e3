"""The stages as functions: the Python API, recipes, inspection."""
