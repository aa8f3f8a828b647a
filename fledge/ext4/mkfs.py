"""Makes a planned filesystem with e2fsprogs.

The tree is staged in a folder, as far as a user without privileges can. ``mkfs.ext4 -d`` makes a
filesystem from it, and one run of ``debugfs`` sets everything that could not be staged. Root does
the same, so that the bytes do not depend on the user.
"""

from __future__ import annotations

import os
import uuid

from fledge.ext4 import debugfs
from fledge.ext4.plan import GROUPS_PER_FLEX, Plan
from fledge.ext4.structures import BLOCK_SIZE, HASH_SEED, INODE_SIZE
from fledge.host import folder, programs
from fledge.host.files import NewFile
from fledge.host.settings import Settings
from fledge.host.work import PrivateFolder, private_folder
from fledge.report import Reporter
from fledge.tree import Tree

CONFIG = f"""\
[defaults]
	blocksize = {BLOCK_SIZE}
	inode_size = {INODE_SIZE}
[fs_types]
	ext4 = {{
		base_features = sparse_super,large_file,filetype,resize_inode,dir_index,ext_attr,\
has_journal,extent,huge_file,flex_bg,metadata_csum,metadata_csum_seed,64bit,dir_nlink,extra_isize
		default_mntopts = acl,user_xattr
	}}
"""
"""The mke2fs.conf(5) of every image. That of the host is ignored."""

OPTIONS = "root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0,nodiscard,no_copy_xattrs"


def check(settings: Settings) -> None:
    """Raise `HostError` if e2fsprogs is missing."""
    for tool in ("mkfs.ext4", "debugfs"):
        programs.find(tool, settings)


def write(
    tree: Tree, plan: Plan, file: NewFile, epoch: int, settings: Settings, reporter: Reporter
) -> None:
    """Write the tree as a filesystem into ``file``, with the geometry of the plan.

    The tree is staged in the folder of ``file``, which needs room for its contents twice. Raises
    as `fledge.ext4.write` does.
    """
    check(settings)
    debugfs.check_fits(tree)
    with private_folder(file.folder) as work:
        # e2fsprogs take the part of a name after ? for options. This link has none.
        os.symlink(f"../{file.name}", "image", dir_fd=work.descriptor)
        with work.create("mke2fs.conf") as config:
            config.write(CONFIG.encode())
        with work.make_folder("tree") as root, reporter.work("staging") as progress:
            unstaged = debugfs.unstaged(tree)
            folder.populate(tree, root, leaving_out=unstaged, progress=progress)
        _mkfs(plan, file, work, epoch, settings)
        debugfs.finish(tree, file, work, epoch, settings)


def _mkfs(plan: Plan, file: NewFile, work: PrivateFolder, epoch: int, settings: Settings) -> None:
    geometry = plan.geometry
    with file.open() as image:
        image.truncate(0)
        image.truncate(geometry.blocks * BLOCK_SIZE)
    programs.run(
        "mkfs.ext4",
        *("-q", "-F", "-T", "default", "-d", "tree", "-m", "0"),
        *("-N", str(geometry.inodes), "-G", str(GROUPS_PER_FLEX)),
        *("-J", f"size={geometry.journal_blocks * BLOCK_SIZE >> 20}"),
        *("-U", str(uuid.UUID(bytes=plan.uuid))),
        *("-E", f"{OPTIONS},hash_seed={uuid.UUID(bytes=HASH_SEED)}"),
        "image",
        f"{geometry.blocks * BLOCK_SIZE // 1024}k",
        folder=work.descriptor,
        settings=settings,
        environment={"MKE2FS_CONFIG": "mke2fs.conf", **debugfs.clock(epoch)},
    )
