"""erofs, written from a tree and read back."""
