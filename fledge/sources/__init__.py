"""What goes into the tree."""
