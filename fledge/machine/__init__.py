"""The machine that boots an artifact: its kernel, and what that can do."""
