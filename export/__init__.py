"""Export: one file a format, and the proof that the exported model answers the same."""
