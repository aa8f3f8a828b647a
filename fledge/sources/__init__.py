"""The sources of a tree: one module for each kind, and their list in `kinds`."""
