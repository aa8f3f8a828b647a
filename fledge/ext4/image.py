"""The image: staged, made, finished."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

from fledge import folder, tools
from fledge.config import Filesystem
from fledge.ext4 import debugfs
from fledge.ext4.layout import INODE_SIZE, Layout, layout
from fledge.folder import BLOCK_SIZE, Written
from fledge.tree import Device, Node, Symlink, Tree

CONFIG = f"""\
[defaults]
	blocksize = {BLOCK_SIZE}
	inode_size = {INODE_SIZE}
[fs_types]
	ext4 = {{
		base_features = sparse_super,large_file,filetype,dir_index,ext_attr,\
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


def write(tree: Tree, path: Path, filesystem: Filesystem, epoch: int) -> None:
    """Make the file at ``path`` an ext4 image of the tree.

    ``epoch``, in seconds, is when the filesystem says it was made. The same tree and
    ``filesystem`` give the same bytes with the same e2fsprogs. Staging takes as much space
    again, beside ``path``. Raises `CorruptError`, with the path, for what ext4 cannot hold;
    `HostError` without e2fsprogs; `FledgeError` if a tool fails; `OSError` if the disk does.
    """
    check()
    folder.check_fits(tree)
    debugfs.check_fits(tree)
    with TemporaryDirectory(prefix=".fledge-", dir=path.parent) as work_folder:
        work = Path(work_folder)
        # Tools read options out of a file name; under this one they get no other.
        image = work / "image"
        image.symlink_to(Path("..", path.name))
        (work / "mke2fs.conf").write_text(CONFIG)
        (work / "tree").mkdir(mode=0o700)
        root = os.open(work / "tree", os.O_RDONLY | os.O_DIRECTORY)
        try:
            written = folder.populate(tree, root, leaving_out=debugfs.unstaged(tree))
            wanted = layout(tree, written, filesystem.size_buffer_mb)
            _mkfs(tree, work, wanted, written, epoch)
        finally:
            folder.remove(tree, root)
            os.close(root)
        debugfs.finish(tree, work, epoch)
    if filesystem.preallocate:
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, wanted.blocks * BLOCK_SIZE)


def _mkfs(
    tree: Tree, work: Path, wanted: Layout, written: Mapping[Node, Written], epoch: int
) -> None:
    identity = _digest(tree, wanted, written)
    os.truncate(work / "image", 0)
    os.truncate(work / "image", wanted.blocks * BLOCK_SIZE)
    tools.run(
        "mkfs.ext4",
        *("-q", "-F", "-T", "default", "-d", "tree", "-m", "0", "-N", str(wanted.inodes)),
        *("-J", f"size={wanted.journal_mb}"),
        *("-U", str(uuid.UUID(bytes=identity[:16], version=4))),
        *("-E", f"{OPTIONS},hash_seed={uuid.UUID(bytes=identity[16:], version=4)}"),
        "image",
        f"{wanted.blocks * BLOCK_SIZE // 1024}k",
        folder=work,
        environment={"MKE2FS_CONFIG": "mke2fs.conf", **debugfs.clock(epoch)},
    )


def _digest(tree: Tree, wanted: Layout, written: Mapping[Node, Written]) -> bytes:
    """What makes an image this one: 32 bytes from all that is in it."""
    digest = sha256(repr(wanted).encode())
    numbers: dict[Node, int] = {}
    for path, node in tree.walk():
        data = written[node].digest if node in written else None
        number = numbers.setdefault(node, len(numbers))
        device = (node.major, node.minor) if isinstance(node, Device) else None
        target = node.target if isinstance(node, Symlink) else None
        metadata = (node.file_type, node.mode, node.uid, node.gid, node.mtime_ns)
        xattrs = sorted(node.xattrs.items())
        digest.update(repr((path, number, metadata, xattrs, data, target, device)).encode())
    return digest.digest()
