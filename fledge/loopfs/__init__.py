"""xfs and btrfs images, filled by the kernel through a loop mount."""
