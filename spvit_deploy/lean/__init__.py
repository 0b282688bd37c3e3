"""The lean model: the modules that survive a search, how they are built, saved and loaded."""
