"""The mappings source: adds files and folders of the project, as listed in ``[mappings]``."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, ClassVar

import msgspec
from msgspec import Meta

from fledge.errors import ConfigError, reason
from fledge.report import counted, human_size
from fledge.sources import paths
from fledge.sources.hostpath import why_missing
from fledge.sources.inputs import Input
from fledge.sources.source import Assembly, Kind, Presence, Source
from fledge.tree import Directory, File, Node, Symlink, Tree, TreeError
from fledge.tree.content import Blob, scan_file
from fledge.tree.digest import Digest
from fledge.tree.limits import MAX_NAME, POSIX_ACLS
from fledge.tree.names import printable, split_path
from fledge.tree.regular import problem_of

EXECUTABLE_FOLDERS = (
    *(b"/bin/", b"/sbin/", b"/usr/bin/", b"/usr/sbin/", b"/usr/local/bin/", b"/usr/local/sbin/"),
    *(b"/opt/bin/", b"/opt/sbin/", b"/lib/", b"/lib64/", b"/usr/lib/", b"/usr/lib64/"),
    *(b"/usr/local/lib/", b"/usr/local/lib64/"),
)
"""Files mapped below these directories get mode 0755, whatever their mode on the host."""

DESTINATION = r"^/(?!(?:[^\u0000]*/)?\.\.(?:/|$))[^\u0000]*$"
"""The pattern of a destination in the JSON Schema: absolute, without ``..``."""


STANDARD_FOLDERS = frozenset(
    b"""/bin /boot /dev /etc /home /lib /lib32 /lib64 /libx32 /media /mnt /opt /proc /root /run
    /sbin /srv /sys /tmp /usr /usr/bin /usr/include /usr/lib /usr/lib32 /usr/lib64 /usr/libexec
    /usr/local /usr/local/bin /usr/local/etc /usr/local/lib /usr/local/sbin /usr/local/share
    /usr/sbin /usr/share /usr/src /var /var/cache /var/lib /var/lock /var/log /var/mail /var/opt
    /var/run /var/spool /var/tmp""".split()
)
"""Folders of the Filesystem Hierarchy Standard 3.0, chapters 3 to 5. No file can be one."""


_DROPPED = frozenset(("security.capability", *map(os.fsdecode, POSIX_ACLS)))
"""Extended attributes of mapped files that a note names, because they are not kept."""


LAYOUT = "#mappings"
"""The URI by which provenance names the mappings apart from contents: a part of the config."""

CONTENTS = "#files"
"""The URI by which it names the contents, if they are more than `MAX_LISTED` files."""

MAX_LISTED = 20_000
"""Files that provenance lists. More of them are one digest, for a statement has a limit."""


class FileMapping(msgspec.Struct, frozen=True):
    """One line of ``[mappings]``."""

    source: Path
    """A file or folder of the host."""
    destination: bytes
    """An absolute path in the artifact. If it ends in a slash, a file keeps its name."""


class Placement(msgspec.Struct, frozen=True):
    """One file, folder or symlink of the host, and its place in the artifact."""

    path: bytes
    """An absolute path in the artifact, normalized. Its parents may be symlinks in the tree."""
    source: Path
    """The path on the host."""
    file_type: int
    """S_IFREG, S_IFDIR or S_IFLNK."""
    mode: int
    """Permissions in the artifact."""


_REPLACED = {
    paths.AGENT: "the agent",
    paths.BUSYBOX: "busybox",
    paths.IMAGE_CONFIG: "the config of the image",
    b"/init": "the init",
}
"""What other sources have put into the tree, and a mapping should not replace unnoticed."""


class Mappings(Source, frozen=True):
    """The files, folders and symlinks of the project that go into the artifact."""

    role: ClassVar[str] = "mappings"

    placements: Annotated[
        tuple[Placement, ...],
        Meta(
            description="Each key is a file or folder of the project, its value an absolute path"
            " in the artifact. If the path ends in a slash, a file keeps its name.",
            examples=[{"app.conf": "/etc/app.conf", "payload/tool": "/usr/bin/"}],
            extra={"kind": "entries", "pattern": DESTINATION},
        ),
    ] = ()
    """All mappings, expanded to single files and sorted by path."""

    @classmethod
    def read(
        cls, entries: Mapping[str, str], folder: Path
    ) -> tuple[Mappings, list[tuple[str, str]]]:
        """Read the mappings of a table. Returns them, and its problems as (key, message).

        Sources are relative to ``folder``. Reads names and permissions, but no contents.
        """
        keys: dict[FileMapping, str] = {}
        problems: list[tuple[str, str]] = []
        for key, destination in entries.items():
            is_swapped = key.startswith("/") and not destination.startswith("/")
            if is_swapped and (not _exists(Path(key)) or _exists(folder / destination)):
                remedy = f'write "{destination}" = "{key}"'
                problems.append((key, f"source and destination are swapped; {remedy}"))
            elif problem := destination_problem(destination):
                problems.append((key, problem))
            elif not key or "\0" in key:
                problems.append((key, "the source must be the path of a file or folder"))
            elif (problem := why_missing(key)) and not _exists(folder / key):
                problems.append((key, f"no such file or folder; {problem}"))
            else:
                keys[FileMapping(folder / key, destination.encode())] = key
        placements, wrong = scan(keys)
        problems.extend((keys[mapping], problem) for mapping, problem in wrong)
        return cls(tuple(placements)), problems

    def local_files(self) -> Sequence[Path]:
        """Return the mapped files and folders, without symlinks, which are not followed."""
        return [each.source for each in self.placements if each.file_type != stat.S_IFLNK]

    def programs(self) -> Sequence[bytes]:
        """Return the executable files, without those in folders for libraries.

        Files in such folders are executable whatever they are.
        """
        return [
            each.path
            for each in self.placements
            if each.file_type == stat.S_IFREG and each.mode & 0o111
            if not re.search(rb"/lib(64)?/", each.path)
        ]

    def lay(self, assembly: Assembly, pin: None) -> str:
        """Add all files to the tree. Raises `ConfigError` if a path cannot be added."""
        tree = assembly.tree
        before = {path: tree.get(path, follow=True) for path in _REPLACED}
        links = hard_links(self.placements)
        blobs = place(tree, self.placements, links)
        if dropped := _with_attributes(self.placements):
            first = assembly.relative(dropped[0].source)
            others = f" and {len(dropped) - 1} more" if len(dropped) > 1 else ""
            assembly.session.reporter.note(
                f"the mapping of {first}{others} keeps no capabilities and access control lists"
            )
        for path, what in _REPLACED.items():
            if (old := before[path]) is not None and tree.get(path, follow=True) is not old:
                assembly.session.reporter.note(f"a mapping replaces {what} at {path.decode()}")
        files = [Input("mapping", assembly.relative(blob.path), blob.digest) for blob in blobs]
        if len(files) > MAX_LISTED:
            files = [Input("mapping", CONTENTS, _digest_of_all(files))]
        assembly.inputs.extend(files)
        if self.placements:
            assembly.inputs.append(Input(self.role, LAYOUT, layout_digest(self.placements, links)))
        size = human_size(sum(blob.size for blob in blobs))
        return f"{counted(len(blobs), 'file')}, {size}"


KIND = Kind(
    table="mappings",
    variants=(Mappings,),
    presence={"initramfs": Presence.ALWAYS, "oci_rootfs": Presence.ALWAYS},
)


def destination_problem(destination: str) -> str | None:
    """Return what is wrong with a destination in ``[mappings]``; None if it is valid."""
    parts = destination.split("/")
    if not destination.startswith("/"):
        if problem := why_missing(destination):
            return f"the destination must be absolute, and {problem}"
        name = destination.removeprefix("./") or "etc/app.conf"
        return f'the destination must be absolute; write "/{name}"'
    if ".." in parts:
        return "the destination must not contain .."
    if "\0" in destination:
        return "the destination must not contain a NUL character"
    if any(len(part.encode()) > MAX_NAME for part in parts):
        return f"a name in the destination is longer than {MAX_NAME} bytes"
    return None


def scan(mappings: Iterable[FileMapping]) -> tuple[list[Placement], list[tuple[FileMapping, str]]]:
    """Expand mappings to placements. Returns them sorted, parents first, and the problems found.

    Reads names and permissions, but no contents. The order of the mappings does not matter.
    """
    placed: dict[bytes, tuple[Placement, FileMapping]] = {}
    problems: list[tuple[FileMapping, str]] = []
    for mapping in sorted(mappings, key=lambda mapping: (mapping.destination, mapping.source)):
        for found in _expand_mapping(mapping):
            if isinstance(found, str):
                problems.append((mapping, found))
                continue
            old = placed.setdefault(found.path, (found, mapping))
            if old[0] is not found and not old[0].file_type == found.file_type == stat.S_IFDIR:
                problems.append((mapping, f"{old[0].source} is mapped to the same path"))
    for placement, mapping in placed.values():
        parent = _file_among_parents(placement.path, placed)
        if parent:
            problems.append((mapping, f"{parent.source} is a file and is mapped to a parent of it"))
    return [placed[path][0] for path in sorted(placed, key=split_path)], problems


def place(tree: Tree, placements: Iterable[Placement], links: Mapping[bytes, bytes]) -> list[Blob]:
    """Add the placements to the tree, owned by root and with the tree's time.

    Existing directories keep their owner and permissions, hard links stay hard links, and long
    zeros become holes. ``links`` is what `hard_links` returns. Returns the contents of the files,
    with their digests. Raises `ConfigError` if a file cannot be read or a path cannot be added.
    """
    blobs: list[Blob] = []
    placed: dict[Node, Placement] = {}
    files: dict[bytes, tuple[Blob, File]] = {}
    # Symlinks first, because the paths of other placements may lead through them.
    for placement in sorted(placements, key=lambda placement: placement.file_type != stat.S_IFLNK):
        try:
            if placement.file_type == stat.S_IFDIR:
                tree.make_directory(split_path(placement.path))
                continue
            old = tree.get(placement.path)
            if isinstance(old, Directory):
                raise TreeError("a directory exists there")
            is_link = isinstance(old, Symlink) and old not in placed
            if is_link and isinstance(tree.get(placement.path, follow=True), Directory):
                raise TreeError("a symlink to a directory exists there")
            if old in placed:
                raise TreeError(f"{placed[old].source} is mapped to the same path")
            if placement.file_type == stat.S_IFLNK:
                target = os.readlink(os.fsencode(placement.source))
                node: Node = Symlink(target=target, mtime_ns=tree.mtime_ns)
            else:
                first = links.get(placement.path, placement.path)
                if first not in files:
                    files[first] = _file(placement, tree.mtime_ns)
                blob, node = files[first]
                blobs.append(msgspec.structs.replace(blob, path=placement.source))
            tree.add(placement.path, node)
        except TreeError as error:
            raise ConfigError(
                f"[mappings] {placement.source} cannot be mapped to {printable(placement.path)}:"
                f" {error}",
                "Choose another destination.",
            ) from error
        except OSError as error:
            raise ConfigError(f"{placement.source}: {reason(error)}") from error
        placed[node] = placement
    return blobs


def _file(placement: Placement, mtime_ns: int) -> tuple[Blob, File]:
    """Return the content of a file with its digest, and its node. Raises `OSError`."""
    blob, content = scan_file(placement.source)
    return blob, File(mode=placement.mode, mtime_ns=mtime_ns, content=content)


def _digest_of_all(files: Iterable[Input]) -> Digest:
    """Return the digest of a listing of files: digest and path, sorted by path, as of sha256sum."""
    lines = (
        f"{each.digest.hex}  {each.uri}\0" for each in sorted(files, key=lambda file: file.uri)
    )
    return Digest.of("".join(lines).encode("utf-8", "surrogateescape"))


def hard_links(placements: Iterable[Placement]) -> dict[bytes, bytes]:
    """Return the first path of each file that has several, by its other paths.

    Names of one file that get different permissions become files of their own.
    """
    first: dict[tuple[int, int, int], bytes] = {}
    others = {}
    for each in placements:
        if each.file_type == stat.S_IFREG:
            with suppress(OSError):
                status = each.source.stat()
                if status.st_nlink > 1:
                    identity = status.st_dev, status.st_ino, each.mode
                    if (name := first.setdefault(identity, each.path)) is not each.path:
                        others[each.path] = name
    return others


def _with_attributes(placements: Iterable[Placement]) -> list[Placement]:
    """Return the files and folders with capabilities or access control lists on this machine."""
    found = []
    for each in placements:
        if each.file_type != stat.S_IFLNK:
            with suppress(OSError):
                if not _DROPPED.isdisjoint(os.listxattr(each.source)):
                    found.append(each)
    return found


def layout_digest(placements: Iterable[Placement], links: Mapping[bytes, bytes]) -> Digest:
    """Return the digest of a listing of placements: path, type, mode, and the target of a symlink
    or the first path of a hard link.

    With the digests of the files, it decides what mappings add to an artifact. Raises `OSError`.
    """
    lines = []
    for each in placements:
        link = each.file_type == stat.S_IFLNK
        target = os.readlink(os.fsencode(each.source)) if link else b""
        target = links.get(each.path, target)
        lines.append(b"%o\0%s\0%s\0" % (each.file_type | each.mode, each.path, target))
    return Digest.of(b"".join(lines))


def _expand_mapping(mapping: FileMapping) -> Iterator[Placement | str]:
    """Yield the placements of one mapping, and messages about its problems."""
    top = b"/" + b"/".join(split_path(mapping.destination))
    try:
        status = mapping.source.stat()
    except OSError as error:
        yield f"{mapping.source}: {reason(error)}"
        return
    problem = problem_of(status)
    if problem is None:
        if mapping.destination.endswith(b"/"):
            top = top.rstrip(b"/") + b"/" + os.fsencode(mapping.source.name)
        elif top in STANDARD_FOLDERS:
            folder = top.decode()
            yield f'{folder} is a folder; write "{folder}/" to map {mapping.source} into it'
            return
        yield from _expand_file(mapping.source, top, status.st_mode)
    elif stat.S_ISDIR(status.st_mode):
        yield from _expand_folder(mapping.source, top)
    else:
        yield f"{mapping.source} is {problem}; only files and folders can be mapped"


def _expand_file(source: Path, path: bytes, mode: int) -> Iterator[Placement | str]:
    if os.access(source, os.R_OK):
        executable = path.startswith(EXECUTABLE_FOLDERS) or mode & 0o111
        yield Placement(path, source, stat.S_IFREG, 0o755 if executable else 0o644)
    else:
        yield f"{source} cannot be read; change its permissions"


def _expand_folder(top: Path, destination: bytes) -> Iterator[Placement | str]:
    pending = [(top, destination)]
    while pending:
        folder, path = pending.pop()
        yield Placement(path, folder, stat.S_IFDIR, 0o755)
        try:
            names = sorted(os.listdir(os.fsencode(folder)))
        except OSError as error:
            yield f"{folder}: {reason(error)}"
            continue
        for name in names:
            source = folder / os.fsdecode(name)
            child = path.rstrip(b"/") + b"/" + name
            try:
                status = source.lstat()
            except OSError as error:
                yield f"{source}: {reason(error)}"
                continue
            if stat.S_ISDIR(status.st_mode):
                pending.append((source, child))
            elif stat.S_ISLNK(status.st_mode):
                yield Placement(child, source, stat.S_IFLNK, 0o777)
            elif problem := problem_of(status):
                yield f"{source} is {problem}; only files and folders can be mapped"
            else:
                yield from _expand_file(source, child, status.st_mode)


def _file_among_parents(
    path: bytes, placed: dict[bytes, tuple[Placement, FileMapping]]
) -> Placement | None:
    """Return the file that is mapped to a parent of ``path``, if any."""
    while (path := path.rpartition(b"/")[0]) != b"":
        placement = placed[path][0] if path in placed else None
        if placement and placement.file_type == stat.S_IFREG:
            return placement
    return None


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that is too long, or has a NUL
        return False
