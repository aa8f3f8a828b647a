"""cpio archives and their compression."""
