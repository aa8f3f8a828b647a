"""ext4 images: written from a tree without privileges, and read back."""
