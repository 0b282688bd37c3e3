"""Files that SPViT's authors publish."""
