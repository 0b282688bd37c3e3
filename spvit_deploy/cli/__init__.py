"""The command line: commands by subject, shared options, and error handling."""
