"""Container images: references, transports, manifests, layers."""
