"""Artifacts of any maker read back: an initramfs as the kernel unpacks it, also a hostile one."""

from __future__ import annotations

import gzip
import hashlib
import lzma
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import pyzstd
import vm

from fledge.artifact import opened
from fledge.content import read_content
from fledge.cpio import newc, reader
from fledge.errors import CorruptError
from fledge.tree import Device, Directory, File, Node, Symlink, Tree

REGULAR = stat.S_IFREG | 0o644
FOLDER = stat.S_IFDIR | 0o755
LINK = stat.S_IFLNK | 0o777


def entry(name: bytes, mode: int = REGULAR, data: bytes = b"", **fields: int) -> bytes:
    numbers = {"ino": 0, "filesize": len(data), **fields}
    return newc.Entry(name=name, mode=mode, **numbers).pack() + data + bytes(-len(data) % 4)


def archive(*entries: bytes) -> bytes:
    return b"".join(entries) + entry(b"TRAILER!!!", mode=0)


def refuse(tmp_path: Path, data: bytes, match: str) -> None:
    path = tmp_path / "initrd"
    path.write_bytes(data)
    with pytest.raises(CorruptError, match=match) as caught, opened(path):
        pass
    assert str(path) in caught.value.message


def test_symlinks_of_one_inode_keep_their_own_targets(tmp_path: Path) -> None:
    path = tmp_path / "initrd"
    names = ((b"a", b"x"), (b"b", b"y"), (b"c", b"y"))
    path.write_bytes(archive(*(entry(name, LINK, data, ino=5, nlink=3) for name, data in names)))
    with opened(path) as artifact:
        nodes = [artifact.tree.get(name) for name, _ in names]
    assert [node.target for node in nodes if isinstance(node, Symlink)] == [b"x", b"y", b"y"]
    assert nodes[1] is nodes[2]


@pytest.mark.parametrize("file_type", [stat.S_IFDIR, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO])
def test_data_of_what_has_none(tmp_path: Path, file_type: int) -> None:
    refuse(tmp_path, archive(entry(b"a", file_type, b"data")), "4 bytes of data are no file")


@pytest.mark.parametrize("compress", [bytes, gzip.compress, pyzstd.compress, lzma.compress])
def test_endless_archives(tmp_path: Path, compress: type[bytes]) -> None:
    start = time.monotonic()
    refuse(tmp_path, compress(archive() * 100_000), "more than 1000 archives")
    assert time.monotonic() - start < 10


def test_endless_members(tmp_path: Path) -> None:
    refuse(tmp_path, gzip.compress(archive()) * 2000, "more than 1000 archives")


def test_paths_that_symlinks_make_long(tmp_path: Path) -> None:
    names = b"/".join([b"d" * 250] * 10)
    far = [
        entry(b"1", LINK, names),
        *(entry(b"%d" % n, LINK, b"%d/" % (n - 1) + names) for n in range(2, 10)),
        *(entry(b"%d/file" % n) for n in range(1, 10)),
    ]
    refuse(tmp_path, archive(*far), "the path is longer than 4095 bytes")


def test_long_paths_of_many_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MAX_KEPT", 8 << 20)
    folder = b"/".join([b"d" * 250] * 16)
    files = [entry(b"l/%d" % n) for n in range(4000)]
    refuse(tmp_path, archive(entry(b"l", LINK, folder), *files), "bytes of metadata")


REPORT = b"""#!/busybox sh
/busybox mount -t proc proc /proc
/busybox find / -xdev ! -path '/dev*' ! -path '/root*' | while read -r path; do
    test -L "$path" && echo "ENTRY $path link $(/busybox readlink "$path")" && continue
    shown=$(/busybox stat -c '%f %u %g %t %T %h' "$path")
    test -f "$path" && shown="$shown $(/busybox sha256sum <"$path")"
    echo "ENTRY $path $shown"
done
/busybox poweroff -f
"""


def overlaid(busybox: bytes) -> bytes:
    """An early archive and what lies over it, with all that the kernel does of its own."""
    early = archive(
        entry(b"kernel", FOLDER),
        entry(b"kernel/microcode", data=b"early"),
        entry(b"proc", FOLDER),
        entry(b"both", data=b"longer than the second"),
        entry(b"linked", data=b"", ino=3, nlink=2),
        entry(b"linked too", data=b"old", ino=3, nlink=2),
        entry(b"was a link", LINK, b"both"),
        entry(b"was a file", data=b"file"),
        entry(b"was empty", FOLDER),
        entry(b"was full", FOLDER),
        entry(b"was full/x", data=b"x"),
        entry(b"was a device", stat.S_IFCHR | 0o600, rdevmajor=1, rdevminor=3),
        entry(b"symlink a", LINK, b"one", ino=4, nlink=2),
        entry(b"symlink b", LINK, b"two", ino=4, nlink=2),
    )
    main = archive(
        entry(b"init", stat.S_IFREG | 0o755, REPORT),
        entry(b"busybox", stat.S_IFREG | 0o755, busybox),
        entry(b"both", stat.S_IFREG | 0o640, b"second", uid=7, gid=8),
        entry(b"linked", data=b"new", ino=3),
        entry(b"was a link", data=b"file"),
        entry(b"was a file", LINK, b"both"),
        entry(b"was empty", data=b"file"),
        entry(b"was full", data=b"lost"),
        entry(b"was a device", stat.S_IFCHR | 0o666, rdevmajor=1, rdevminor=5),
        entry(b"to folder", LINK, b"kernel"),
        entry(b"to folder/late", data=b"late"),
        entry(b"first", data=b"data at the first name", ino=9, nlink=2),
        entry(b"second", data=b"", ino=9, nlink=2),
    )
    last = archive(entry(b"last", data=b"of gzip"))
    return early + bytes(512) + pyzstd.compress(main) + bytes(9) + gzip.compress(last)


def told(tree: Tree) -> Iterator[str]:
    """What the script above says of each entry."""
    names: dict[Node, int] = {}
    for _, node in tree.walk():
        names[node] = names.get(node, 0) + 1
    for path, node in tree.walk():
        shown = f"/{path.decode()}"
        if isinstance(node, Symlink):
            yield f"{shown} link {node.target.decode()}"
            continue
        links = names[node]
        if isinstance(node, Directory):
            links = 2 + sum(isinstance(child, Directory) for child in node.children.values())
        number = (node.major, node.minor) if isinstance(node, Device) else (0, 0)
        fields = (node.file_type | node.mode, node.uid, node.gid, *number, links)
        shown += " {:x} {} {} {:x} {:x} {}".format(*fields)
        if isinstance(node, File):
            shown += f" {_sha256(node)}  -"
        yield shown


@pytest.mark.real
def test_the_kernel_unpacks_what_is_read(tmp_path: Path) -> None:
    busybox = shutil.which("busybox")
    if busybox is None:
        pytest.skip("no busybox: run scripts/test-tools")
    path = tmp_path / "initrd"
    path.write_bytes(overlaid(Path(busybox).read_bytes()))
    console = vm.boot(path)
    lines = [line.removeprefix("ENTRY ") for line in console.splitlines() if "ENTRY " in line]
    with opened(path) as artifact:
        expected = list(told(artifact.tree))
    # The root has more folders, and something is mounted on /proc.
    assert {line for line in lines if not line.startswith(("/ ", "/proc "))} == {
        line for line in expected if not line.startswith(("/ ", "/proc "))
    }, console


def _sha256(file: File) -> str:
    return hashlib.sha256(b"".join(read_content(file.content))).hexdigest()
