"""Reports as HTML, Markdown and JSON."""
