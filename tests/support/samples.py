"""A tree with everything that is hard to store in ext4."""

import struct

from hypothesis import strategies as st

from fledge.ext4.structures import MAX_SECONDS, MIN_SECONDS
from fledge.tree import BlockDevice, CharDevice, Directory, Fifo, File, Node, Symlink, Tree

EPOCH = 1704067200
CAPABILITIES = {b"security.capability": bytes.fromhex("0100000200040000000000000000000000000000")}
ACL = struct.pack("<IHHIHHIHHI", 2, 1, 6, 0xFFFFFFFF, 4, 4, 0xFFFFFFFF, 32, 4, 0xFFFFFFFF)

TIMES = st.integers(MIN_SECONDS * 10**9, MAX_SECONDS * 10**9)
"""The range of times, in nanoseconds, that ext4 can store."""


def sample() -> Tree:
    """Make a tree with everything that is hard to stage, name and store."""
    tree = Tree(mtime_ns=EPOCH * 10**9)
    nodes: dict[bytes, Node] = {
        b"bin": Symlink(target=b"usr/bin"),
        b"usr/bin/su": File(mode=0o4755, content=b"su", xattrs=dict(CAPABILITIES)),
        b"usr/bin/unreadable": File(mode=0, uid=4294967294, gid=70000, content=b"x" * 5000),
        b"dev/null": CharDevice(mode=0o666, major=1, minor=3),
        b'dev/-sd "a" <2>': BlockDevice(mode=0o660, gid=6, major=511, minor=200_000),
        b"run/fifo": Fifo(mode=0o622, mtime_ns=-1_500_000_001),
        b"run/-q\n\"'\xff $(x)": File(mode=0o600, content=b"", mtime_ns=2**33 * 10**9 + 999),
        b"run/" + b"n" * 255: Directory(mode=0o1777, uid=1),
        b"long": Symlink(target=b"t" * 1000),
        b"acl": File(mode=0o664, content=b"", xattrs={b"system.posix_acl_access": ACL}),
        b"xattrs": Directory(mode=0o755, xattrs={b"trusted.nul": b"a\0b\n" * 300, b"user.e": b""}),
        b"zeros": File(mode=0o644, content=b"\0" * 9000 + b"1" + bytes(9000)),
    }
    for path, node in nodes.items():
        tree.add(path, node)
    for link, path in ((b"su", b"usr/bin/su"), (b"0", b"dev/null"), (b"s", b"long")):
        linked = tree.get(path)
        assert linked
        tree.add(b"links/" + link, linked)
    return tree
