"""One folder per runtime with all that is special to it, and what they share."""
