"""A planned filesystem made by e2fsprogs: staged, made, finished.

The tree is staged in a folder, as far as a plain user can; ``mkfs.ext4 -d`` makes the
filesystem of it; one pass of ``debugfs`` sets what could not be staged. As root it goes the
same way, so that who builds makes no difference to the bytes.
"""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from tempfile import TemporaryDirectory

from fledge.ext4 import debugfs
from fledge.ext4.plan import GROUPS_PER_FLEX, Plan
from fledge.ext4.structures import BLOCK_SIZE, INODE_SIZE
from fledge.host import folder
from fledge.host import programs as tools
from fledge.tree import Tree

CONFIG = f"""\
[defaults]
	blocksize = {BLOCK_SIZE}
	inode_size = {INODE_SIZE}
[fs_types]
	ext4 = {{
		base_features = sparse_super,large_file,filetype,resize_inode,dir_index,ext_attr,\
has_journal,extent,huge_file,flex_bg,metadata_csum,64bit,dir_nlink,extra_isize
		default_mntopts = acl,user_xattr
	}}
"""
"""The mke2fs.conf(5) of every image, whatever the host's says."""

OPTIONS = "root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0,nodiscard,no_copy_xattrs"


def check() -> None:
    """Raise `HostError` if e2fsprogs is missing."""
    for tool in ("mkfs.ext4", "debugfs"):
        tools.find(tool)


def write(tree: Tree, plan: Plan, path: Path, epoch: int) -> None:
    """Make the file at ``path`` an image as large as planned, with the whole tree.

    Staging takes as much space again, beside ``path``. Raises as `fledge.ext4.write` does.
    """
    check()
    debugfs.check_fits(tree)
    with TemporaryDirectory(prefix=".fledge-", dir=path.parent) as work_folder:
        work = Path(work_folder)
        # Tools read options out of a file name; under this one they get no other.
        (work / "image").symlink_to(Path("..", path.name))
        (work / "mke2fs.conf").write_text(CONFIG)
        (work / "tree").mkdir(mode=0o700)
        root = os.open(work / "tree", os.O_RDONLY | os.O_DIRECTORY)
        try:
            folder.populate(tree, root, leaving_out=debugfs.unstaged(tree))
            _mkfs(plan, work, epoch)
        finally:
            folder.remove(tree, root)
            os.close(root)
        debugfs.finish(tree, work, epoch)


def _mkfs(plan: Plan, work: Path, epoch: int) -> None:
    divided = plan.geometry
    os.truncate(work / "image", 0)
    os.truncate(work / "image", divided.blocks * BLOCK_SIZE)
    tools.run(
        "mkfs.ext4",
        *("-q", "-F", "-T", "default", "-d", "tree", "-m", "0"),
        *("-N", str(divided.inodes), "-G", str(GROUPS_PER_FLEX)),
        *("-J", f"size={divided.journal_blocks * BLOCK_SIZE >> 20}"),
        *("-U", str(uuid.UUID(bytes=plan.uuid))),
        *("-E", f"{OPTIONS},hash_seed={uuid.UUID(bytes=plan.hash_seed)}"),
        "image",
        f"{divided.blocks * BLOCK_SIZE // 1024}k",
        folder=work,
        environment={"MKE2FS_CONFIG": "mke2fs.conf", **debugfs.clock(epoch)},
    )
