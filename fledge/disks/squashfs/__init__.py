"""squashfs: a compressed filesystem that Linux can only read."""
