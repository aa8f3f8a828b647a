"""Software bills of materials: what an artifact is made of, in the formats of others."""
