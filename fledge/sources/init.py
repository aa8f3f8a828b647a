"""The init source: adds ``/init`` to an initramfs, and what the kernel needs to run it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar

from msgspec import Meta

from fledge.sources import paths
from fledge.sources.inputs import Input
from fledge.sources.source import Assembly, InputFile, Kind, Presence, Source
from fledge.tree import CharDevice, Directory, File, Tree
from fledge.tree.content import Span, hash_file

MOUNT_POINTS = {
    b"/dev": 0o755,
    b"/proc": 0o555,
    b"/run": 0o755,
    b"/sys": 0o555,
    b"/tmp": 0o1777,
}
"""The directories that the built-in init mounts filesystems on, with their permissions."""

DEVICES = {
    b"/dev/console": (0o600, 5, 1),
    b"/dev/null": (0o666, 1, 3),
}
"""Mode, major and minor number of device nodes. The kernel opens ``/dev/console`` for init before
devtmpfs is mounted."""


class Init(Source, frozen=True):
    """The init of an initramfs. Without any key, the built-in init, which starts the agent."""

    role: ClassVar[str] = "init"
    programs: ClassVar[tuple[bytes, ...]] = (b"/init",)

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
            extra={"contradicts": "path"},
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
        install(assembly.tree, hash_file(paths.BUILT_IN_INIT) if self.is_built_in else None)
        return "built in" if self.is_built_in else "mapped"


KIND = Kind(
    table="init",
    variants=(Init,),
    presence={"initramfs": Presence.ALWAYS},
    description="The program that the kernel starts. By default the built-in init, which starts"
    " the agent.",
)


def install(tree: Tree, init: Span | None) -> None:
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
