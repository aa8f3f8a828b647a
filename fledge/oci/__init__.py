"""Container images: what they are, where they live, and what filesystem they make."""
