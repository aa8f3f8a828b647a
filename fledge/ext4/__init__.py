"""ext4 images from a tree, by e2fsprogs and without privileges.

The tree is staged in a folder, as far as a plain user can; ``mkfs.ext4 -d`` makes the
filesystem of it; one pass of ``debugfs`` sets what could not be staged. As root it goes the
same way, so that who builds makes no difference to the bytes.
"""

from fledge.ext4.image import check, write

__all__ = ["check", "write"]
