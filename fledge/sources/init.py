"""The init source: adds ``/init`` to an initramfs, and what the kernel needs to run it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, ClassVar

from msgspec import Meta

from fledge.sources import paths
from fledge.sources.inputs import Input
from fledge.sources.source import Assembly, InputFile, Kind, Presence, Source
from fledge.tree import CharDevice, Directory, File, Symlink, Tree
from fledge.tree.content import Content, content_size, hash_file, read_content
from fledge.tree.names import split_path

MOUNT_POINTS = {
    b"/dev": 0o755,
    b"/proc": 0o555,
    b"/run": 0o755,
    b"/sys": 0o555,
    b"/tmp": 0o1777,
}
"""The directories that the built-in init mounts filesystems on, with their permissions."""

MADE_MOUNT_POINTS = (b"/dev/pts", b"/dev/shm")
"""The directories in a mounted filesystem that init or agent make and mount others on."""

DEVICES = {
    b"/dev/console": (0o600, 5, 1),
    b"/dev/null": (0o666, 1, 3),
}
"""Mode, major and minor number of device nodes. The kernel opens ``/dev/console`` for init before
devtmpfs is mounted."""


class Init(Source, frozen=True):
    """The init of an initramfs. Without any key, the built-in init, which starts the agent."""

    role: ClassVar[str] = "init"

    path: Annotated[
        InputFile | None,
        Meta(
            description="A file that becomes /init. The artifact then has no agent.",
            examples=["my-init"],
        ),
    ] = None
    none: Annotated[
        bool,
        Meta(
            description="If true, a mapping or the image provides /init. The artifact then has no"
            " agent.",
            examples=[True],
            extra={"contradicts": ("path",)},
        ),
    ] = False

    def __post_init__(self) -> None:
        if self.path and self.none:
            raise ValueError("path and none contradict each other")

    @property
    def is_built_in(self) -> bool:
        """Whether the built-in init becomes ``/init``. A mapping to ``/init`` still replaces it."""
        return self.path is None and not self.none

    def local_files(self) -> Sequence[Path]:
        """Return the user's init, if any."""
        return (self.path,) if self.path else ()

    def lay(self, assembly: Assembly, pin: None) -> str:
        """Add ``/init``, the mount points and the device nodes."""
        if self.path:
            file = hash_file(self.path)
            install(assembly.tree, file)
            name = assembly.relative(self.path)
            assembly.inputs.append(Input(self.role, name, file.digest))
            return name
        install(assembly.tree, built_in(assembly.tree) if self.is_built_in else None)
        return "built in" if self.is_built_in else "mapped"


KIND = Kind(
    table="init",
    variants=(Init,),
    presence={"initramfs": Presence.ALWAYS},
    description="The program that the kernel starts. By default the built-in init, which starts"
    " the agent.",
)


def built_in(tree: Tree) -> bytes:
    """Return the built-in init for a tree that has ``/bin/busybox``.

    Volant's kernel has an archive of its own, over which it unpacks the artifact. Where that has a
    directory with files, such as /bin, the kernel cannot put a symlink of the artifact. So the init
    puts each symlink to a directory at the top of the tree there itself, and is started by a path
    to busybox without symlinks.
    """
    busybox = os.fsdecode((tree.real_path(b"/bin") or b"/bin") + b"/busybox")
    lines = []
    for name, node in sorted(tree.root.children.items()):
        if isinstance(node, Symlink) and isinstance(tree.get(name, follow=True), Directory):
            link, target = (shlex.quote(os.fsdecode(each)) for each in (b"/" + name, node.target))
            lines.append(f"[ -L {link} ] || {{ $b rm -rf {link} && $b ln -s {target} {link}; }}\n")
    script = os.fsdecode(paths.BUILT_IN_INIT.read_bytes()).replace("/bin/busybox", busybox, 1)
    if lines:
        why = "# The kernel does not unpack a link where it has a directory from elsewhere.\n"
        script = script.replace("\nexport ", f"\n{why}b={busybox}\n{''.join(lines)}\nexport ", 1)
    return os.fsencode(script)


def has_built_in(tree: Tree) -> bool:
    """Return whether ``/init`` in a tree is the built-in init."""
    node = tree.get(b"/init")
    if not isinstance(node, File) or not isinstance(tree.get(b"/bin", follow=True), Directory):
        return False
    expected = built_in(tree)
    return content_size(node.content) == len(expected) and expected == b"".join(
        read_content(node.content)
    )


def install(tree: Tree, init: Content | None) -> None:
    """Add the mount points and device nodes to the tree, and ``init`` as ``/init``.

    Existing directories do not change. If ``init`` is None, neither does ``/init``.
    """
    for path, mode in MOUNT_POINTS.items():
        if not isinstance(tree.get(path, follow=True), Directory):
            tree.add(path, Directory(mode=mode, mtime_ns=tree.mtime_ns))
    for path, (mode, major, minor) in DEVICES.items():
        tree.add(path, CharDevice(mode=mode, mtime_ns=tree.mtime_ns, major=major, minor=minor))
    if init is not None:
        tree.add(b"/init", File(mode=0o755, mtime_ns=tree.mtime_ns, content=init))


def mounted(
    tree: Tree, mount_points: Iterable[bytes] = (*MOUNT_POINTS, *MADE_MOUNT_POINTS)
) -> Tree:
    """Return a tree as programs see it once init or agent have mounted filesystems.

    They hide what the tree has at these places, and follow symlinks to them. ``tree`` does not
    change.
    """
    seen = Tree(tree.mtime_ns)
    seen.root = replace(tree.root, children=dict(tree.root.children))
    for path in mount_points:
        empty = Directory(mode=0o755)
        if not isinstance(seen.get(path, follow=True), Directory):
            seen.add(path, empty)
            continue
        names = split_path(seen.real_path(path) or path)
        parents = seen.trail(names)[:-1]
        for name, parent in zip(reversed(names), reversed(parents), strict=True):
            empty = replace(parent, children={**parent.children, name: empty})
        seen.root = empty
    return seen
