"""Reading every kind of initramfs as the kernel unpacks it, hostile ones included."""

from __future__ import annotations

import gzip
import hashlib
import lzma
import os
import re
import shutil
import stat
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import pyzstd
from hypothesis import given, settings
from hypothesis import strategies as st

from fledge.cpio import lz4, newc, reader
from fledge.errors import CorruptError, FledgeError
from fledge.formats import open_artifact
from fledge.tree import (
    BlockDevice,
    CharDevice,
    Device,
    Directory,
    File,
    Node,
    Symlink,
    Tree,
    compression,
)
from fledge.tree.content import read_content
from tests.support import vm
from tests.support.trees import describe, tree_on_disk, trees

Compress = Callable[[bytes], bytes]

COMPRESSORS: dict[str | None, Compress] = {
    None: bytes,
    "gzip": lambda data: gzip.compress(data, mtime=0),
    "zstd": pyzstd.compress,
    "xz": lambda data: lzma.compress(data, check=lzma.CHECK_CRC32),
    # Only a zero or the end of the file ends it.
    "lz4": lambda data: b"".join(lz4.compress([data])) + bytes(4),
}

every_compression = pytest.mark.parametrize("name", COMPRESSORS, ids=str)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A path for an initramfs, which hypothesis may reuse for all examples."""
    return tmp_path_factory.mktemp("reader") / "initrd"


def archive(**nodes: Node) -> bytes:
    tree = Tree(mtime_ns=0)
    for name, node in nodes.items():
        tree.add(name.replace("__", "/").encode(), node)
    return b"".join(newc.write(tree))


def file(content: bytes = b"", mode: int = 0o644) -> File:
    return File(mode=mode, content=content)


def entry(name: bytes, mode: int = stat.S_IFREG | 0o644, data: bytes = b"", **fields: int) -> bytes:
    numbers = {"ino": 1, "filesize": len(data), **fields}
    return newc.Entry(name=name, mode=mode, **numbers).pack() + data + b"\0" * (-len(data) % 4)


TRAILER = entry(b"TRAILER!!!", mode=0, ino=0)


def read(path: Path, data: bytes) -> reader.Unpacked:
    path.write_bytes(data)
    return reader.read(path, path.parent)


def content(tree: Tree, name: bytes) -> bytes:
    node = tree.get(name)
    assert isinstance(node, File)
    return b"".join(read_content(node.content))


def refuse(path: Path, data: bytes, match: str) -> None:
    with pytest.raises(CorruptError, match=match) as caught:
        read(path, data)
    assert str(path) in caught.value.message


@every_compression
@settings(deadline=None, max_examples=8)
@given(tree=trees())
def test_every_compression_gives_the_same_tree(path: Path, name: str | None, tree: Tree) -> None:
    data = b"".join(newc.write(tree))
    found = read(path, COMPRESSORS[name](data))
    assert describe(found.tree) == describe(tree)
    [part] = found.archives
    assert (part.offset, part.compression) == (0, name)
    assert part.entries == sum(1 for _ in tree.walk())


@every_compression
def test_microcode_before_the_main_archive(path: Path, name: str | None) -> None:
    early = archive(kernel__x86__microcode=file(b"microcode"), both=file(b"early"))
    main = COMPRESSORS[name](archive(init=file(b"main", 0o755), both=file(b"late")))
    found = read(path, early + bytes(1024) + main + bytes(77))
    assert content(found.tree, b"kernel/x86/microcode") == b"microcode"
    assert content(found.tree, b"init") == b"main"
    assert content(found.tree, b"both") == b"late"
    assert [(part.offset, part.compression) for part in found.archives] == [
        (0, None),
        (len(early) + 1024, name),
    ]


def test_all_compressions_after_each_other(path: Path) -> None:
    data = b"".join(
        compress(archive(**{f"from_{name}": file(b"x" * 1000)}))
        for name, compress in COMPRESSORS.items()
    )
    tree = read(path, data).tree
    assert sorted(tree.root.children) == sorted(f"from_{name}".encode() for name in COMPRESSORS)


def test_several_archives_in_one_member(path: Path) -> None:
    inner = archive(a=file(b"1")) + bytes(8) + archive(b=file(b"2"))
    found = read(path, gzip.compress(inner))
    assert sorted(found.tree.root.children) == [b"a", b"b"]
    assert len(found.archives) == 2


def test_a_later_file_is_written_into_the_one_that_is_there(path: Path) -> None:
    same = file(b"old")
    tree = read(path, archive(a=same, b=same) + archive(a=file(b"new", 0o600))).tree
    assert content(tree, b"b") == b"new"
    assert tree.get(b"a") is tree.get(b"b")


def test_links_do_not_go_from_one_archive_to_the_next(path: Path) -> None:
    first = entry(b"a", data=b"1", nlink=2, ino=7) + TRAILER
    second = entry(b"b", data=b"2", nlink=2, ino=7) + TRAILER
    tree = read(path, first + second).tree
    assert (content(tree, b"a"), content(tree, b"b")) == (b"1", b"2")


@pytest.mark.parametrize("has_data", [0, 1, 2])
def test_the_data_of_a_hard_link_can_be_at_any_name(path: Path, has_data: int) -> None:
    names = (b"a", b"b", b"c")
    entries = [
        entry(name, data=b"data" if number == has_data else b"", nlink=3)
        for number, name in enumerate(names)
    ]
    tree = read(path, b"".join(entries) + TRAILER).tree
    assert [content(tree, name) for name in names] == [b"data"] * 3
    assert len({id(tree.get(name)) for name in names}) == 1


def test_what_replaces_what(path: Path) -> None:
    first = archive(
        full__x=file(),
        empty=Directory(mode=0o700),
        was_file=file(b"f"),
        was_link=Symlink(target=b"x"),
    )
    second = archive(
        full=file(b"lost"),
        empty=file(b"took its place"),
        was_file=Symlink(target=b"y"),
        was_link=file(b"written"),
    )
    tree = read(path, first + second).tree
    assert isinstance(tree.get(b"full"), Directory)
    assert content(tree, b"empty") == b"took its place"
    assert isinstance(tree.get(b"was_file"), Symlink)
    assert content(tree, b"was_link") == b"written"


def test_a_link_target_may_end_with_a_nul(path: Path) -> None:
    """As written by gen_init_cpio of the kernel."""
    node = read(path, entry(b"l", stat.S_IFLNK | 0o777, b"target\0") + TRAILER).tree.get(b"l")
    assert isinstance(node, Symlink)
    assert node.target == b"target"


def test_sockets_are_told_of(path: Path) -> None:
    found = read(path, entry(b"run/socket", stat.S_IFSOCK | 0o777) + TRAILER)
    assert found.sockets == [b"run/socket"]


def with_checksum(data: bytes, total: int) -> bytes:
    packed = entry(b"a", data=data, check=total & 0xFFFFFFFF)
    return packed.replace(b"070701", b"070702", 1) + TRAILER


def test_checksums_are_verified(path: Path) -> None:
    data = bytes(range(256)) * 99
    assert content(read(path, with_checksum(data, sum(data))).tree, b"a") == data
    refuse(path, with_checksum(data, sum(data) + 1), "the checksum of a is wrong")


@pytest.mark.parametrize("tail", [b"junk", b"\0\0\0x"])
@every_compression
def test_junk_behind_an_archive(path: Path, name: str | None, tail: bytes) -> None:
    refuse(
        path,
        COMPRESSORS[name](archive(a=file())) + tail,
        "neither a cpio archive nor compressed data begins at byte",
    )


def test_archive_that_is_not_aligned(path: Path) -> None:
    first = archive(a=file())
    refuse(path, first + bytes(2) + first, "is not aligned to 4 bytes")


@pytest.mark.parametrize("name", ["gzip", "zstd", "xz"])
def test_every_truncation_of_a_compressed_one(path: Path, name: str) -> None:
    data = COMPRESSORS[name](archive(a=file(b"12345"), b=Symlink(target=b"a")))
    for size in range(len(data)):
        with pytest.raises(CorruptError):
            read(path, data[:size])


def test_an_archive_cannot_go_on_in_the_next_member(path: Path) -> None:
    data = archive(a=file(b"12345" * 100))
    refuse(path, gzip.compress(data[:300]) + gzip.compress(data[300:]), "ends within the data of a")


@pytest.mark.parametrize(
    ("start", "name"),
    [
        (b"BZh9", "bzip2"),
        (b"]\0\0\x80\0", "lzma"),
        (b'\x04"M\x18', "lz4 without -l"),
        (b"\x89LZO\0", "lzo"),
    ],
)
def test_compressions_that_are_not_read_are_named(path: Path, start: bytes, name: str) -> None:
    with pytest.raises(FledgeError, match=f"compressed with {name}") as caught:
        read(path, archive(a=file()) + start + bytes(99))
    assert caught.value.hint


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gzip", "zstd", "xz", "lz4"])
def test_bomb(path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(reader, "MAX_DECOMPRESSED_SIZE", 8 << 20)
    refuse(path, COMPRESSORS[name](bytes(64 << 20)), "larger than 8.0 MiB")
    # The largest piece of output, a block of LZ4, has 8 MiB.
    assert (path.parent / "unpacked.cpio").stat().st_size <= 16 << 20


def test_xz_that_claims_much_memory(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compression, "MAX_XZ_MEMORY", 1 << 20)
    refuse(path, lzma.compress(archive(a=file()), preset=9), "Memory usage limit")


def test_many_names_in_paths(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fledge.tree.budget.MIN_MEMORY", 4 << 20)
    deep = b"".join(entry(b"%d" % n + b"/d" * 2000) for n in range(9))
    refuse(path, deep + TRAILER, r"more than 4\.0 MiB of memory")


def test_symlinks_of_one_inode_keep_their_own_targets(path: Path) -> None:
    names = ((b"a", b"x"), (b"b", b"y"), (b"c", b"y"))
    links = (entry(name, stat.S_IFLNK, target, nlink=3) for name, target in names)
    tree = read(path, b"".join(links) + TRAILER).tree
    nodes = [tree.get(name) for name, _ in names]
    assert [node.target for node in nodes if isinstance(node, Symlink)] == [b"x", b"y", b"y"]
    assert nodes[1] is nodes[2]


@pytest.mark.parametrize("file_type", [stat.S_IFDIR, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO])
def test_data_of_what_has_none(path: Path, file_type: int) -> None:
    refuse(path, entry(b"a", file_type, b"data") + TRAILER, "4 bytes of data is not a valid entry")


@pytest.mark.slow
@every_compression
def test_endless_archives(path: Path, name: str | None) -> None:
    start = time.monotonic()
    refuse(path, COMPRESSORS[name](TRAILER * 100_000), "more than 1000 archives")
    assert time.monotonic() - start < 100


def test_endless_members(path: Path) -> None:
    refuse(path, gzip.compress(TRAILER) * 2000, "more than 1000 archives")


def test_paths_that_symlinks_make_long(path: Path) -> None:
    """Each link leads 2,500 bytes further down."""
    names = b"/".join([b"d" * 250] * 10)
    far = [
        entry(b"1", stat.S_IFLNK, names),
        *(entry(b"%d" % n, stat.S_IFLNK, b"%d/" % (n - 1) + names) for n in range(2, 10)),
        *(entry(b"%d/file" % n) for n in range(1, 10)),
    ]
    refuse(path, b"".join(far) + TRAILER, "the path is longer than 4095 bytes")


def test_long_paths_of_many_files(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fledge.tree.budget.MIN_MEMORY", 8 << 20)
    link = entry(b"l", stat.S_IFLNK, b"/".join([b"d" * 250] * 16))
    files = b"".join(entry(b"l/%d" % n) for n in range(4000))
    refuse(path, link + files + TRAILER, "of memory")


def test_paths_that_lead_far(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of 1,000 entries leads through 38 symlinks of 100 names."""
    monkeypatch.setattr("fledge.tree.nodes.MAX_SOURCE_STEPS", 1 << 20)
    links = b"".join(
        entry(b"%d" % n, stat.S_IFLNK, b"./" * 99 + b"%d" % (n + 1)) for n in range(38)
    )
    refuse(path, links + 1000 * entry(b"0/x") + TRAILER, "lead through more than")


@pytest.mark.slow
@settings(deadline=None, max_examples=100)
@given(
    name=st.sampled_from(list(COMPRESSORS)),
    edits=st.lists(
        st.tuples(st.integers(0, 4000), st.integers(0, 8), st.binary(max_size=8)), max_size=3
    ),
    inside=st.booleans(),
)
def test_mutations(
    path: Path, name: str | None, edits: list[tuple[int, int, bytes]], inside: bool
) -> None:
    """Limits of the uncompressed archive, and of everything in the file."""
    link = file(b"hello" * 9)
    inner = archive(
        a=link, b__c=link, l=Symlink(target=b"a"), n=CharDevice(mode=0o600, major=5, minor=1)
    )
    early = archive(kernel=file(b"early"))
    data = inner if inside else early + COMPRESSORS[name](inner)
    for position, size, new in edits:
        start = position % len(data)
        data = data[:start] + new + data[start + size :]
    try:
        found = read(path, COMPRESSORS[name](data) if inside else data)
    except CorruptError:
        return
    except FledgeError as error:
        assert "ecompress it first" in error.hint
        return
    rows = describe(found.tree)
    assert describe(read(path, b"".join(newc.write(found.tree))).tree) == rows


def run(*command: str | Path, stdin: bytes = b"", cwd: Path | None = None) -> bytes:
    if shutil.which(command[0]) is None:
        pytest.skip(f"no {command[0]}: run scripts/test-tools")
    environment = {**os.environ, "TZ": "UTC", "LC_ALL": "C"}
    done = subprocess.run(
        command, input=stdin, capture_output=True, cwd=cwd, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    return done.stdout


@pytest.mark.real
@pytest.mark.parametrize("archive_format", ["newc", "crc"])
@pytest.mark.parametrize(
    "tool", [None, "gzip -9n", "zstd -19", "zstd -T2 --long=27", "xz -C crc32"]
)
def test_gnu_cpio_and_the_commands(tmp_path: Path, archive_format: str, tool: str | None) -> None:
    folder = tmp_path / "folder"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin/big").write_bytes(os.urandom(3 << 20))
    (folder / "bin/link").hardlink_to(folder / "bin/big")
    (folder / "bin/symlink").symlink_to("big")
    os.mkfifo(folder / "fifo", 0o640)
    for item in (folder, *folder.rglob("*")):
        os.utime(item, (1, 1_600_000_000), follow_symlinks=False)
    names = b"\n".join(sorted(run("find", ".", cwd=folder).splitlines()))
    data = run("cpio", "-o", "-H", archive_format, "--quiet", stdin=names, cwd=folder)
    image = tmp_path / "initrd"
    image.write_bytes(run(*tool.split(), "-c", stdin=data) if tool else data)
    with open_artifact(image) as artifact:
        assert describe(artifact.tree) == describe(tree_on_disk(folder))


INIT = b"""#!/bin/busybox sh
busybox find /t | while read -r path; do
    sum=
    if [ -f "$path" ] && [ ! -L "$path" ]; then sum=$(busybox sha256sum <"$path"); fi
    if [ -L "$path" ]; then sum=$(busybox readlink "$path"); fi
    echo "entry $(busybox stat -c '%n %f %u %g %h %t:%T' "$path") ${sum%% *}"
done
busybox poweroff -f
"""


def as_init_shows(tree: Tree) -> set[str]:
    """Return what INIT prints about /t."""
    links = Counter(node for _, node in tree.walk())
    shown: set[str] = set()
    for path, node in tree.walk():
        if path.split(b"/")[0] != b"t":
            continue
        count, data = links[node], ""
        if isinstance(node, Directory):
            count = 2 + sum(isinstance(child, Directory) for child in node.children.values())
        elif isinstance(node, File):
            data = hashlib.sha256(b"".join(read_content(node.content))).hexdigest()
        elif isinstance(node, Symlink):
            data = node.target.decode()
        major, minor = (node.major, node.minor) if isinstance(node, Device) else (0, 0)
        fields = f"{node.file_type | node.mode:x} {node.uid} {node.gid} {count} {major:x}:{minor:x}"
        shown.add(f"entry /{path.decode()} {fields} {data}")
    return shown


@pytest.mark.real
@every_compression
def test_the_kernel_lays_archives_over_each_other_so(tmp_path: Path, name: str | None) -> None:
    busybox = Path(shutil.which("busybox") or "")
    if not busybox.is_file():
        pytest.skip("no busybox: run scripts/test-tools")
    shared = file(b"shared")
    first = archive(
        bin__busybox=file(busybox.read_bytes(), 0o755),
        init=file(INIT, 0o755),
        dev__console=CharDevice(mode=0o600, major=5, minor=1),
        t__full__x=file(b"x"),
        t__empty=Directory(mode=0o700),
        t__link1=shared,
        t__link2=shared,
        t__to_symlink=file(b"f"),
        t__to_file=Symlink(target=b"link1"),
        t__folder=Directory(mode=0o750),
        t__folder__kept=file(b"kept", 0o4711),
        t__retargeted=Symlink(target=b"here"),
        t__through=Symlink(target=b"folder"),
        t__device=CharDevice(mode=0o600, major=1, minor=3),
        t__null=CharDevice(mode=0o600, major=1, minor=3),
    )
    again = file(b"linked anew")
    second = archive(
        t__full=file(b"lost"),
        t__empty=file(b"took its place"),
        t__link1=File(mode=0o600, uid=7, gid=8, content=b"new, and longer"),
        t__to_symlink=Symlink(target=b"y"),
        t__to_file=file(b"no symlink any more"),
        t__folder=Directory(mode=0o1777, uid=5),
        t__retargeted=Symlink(target=b"there"),
        t__device=BlockDevice(mode=0o660, major=7, minor=1),
        t__linked1=again,
        t__linked2=again,
    )
    third = (
        entry(b"t/through/new", data=b"through a symlink")
        + entry(b"t/symlink1", stat.S_IFLNK | 0o777, b"one", ino=4, nlink=2)
        + entry(b"t/symlink2", stat.S_IFLNK | 0o777, b"two", ino=4, nlink=2)
        + entry(b"t/first", data=b"data at the first name", ino=5, nlink=2)
        + entry(b"t/last", ino=5, nlink=2)
        + entry(b"t/null", stat.S_IFCHR | 0o666, rdevmajor=1, rdevminor=5)
        + TRAILER
    )
    image = tmp_path / "initrd"
    data = first + bytes(512) + COMPRESSORS[name](second)
    image.write_bytes(data + bytes(-len(data) % 4) + third)
    console = vm.boot(image)
    with open_artifact(image) as artifact:
        assert as_init_shows(artifact.tree) == {
            line for line in console.splitlines() if line.startswith("entry ")
        }


@contextmanager
def debian_initrd(folder: Path, compress: str) -> Iterator[Path]:
    """Make an initrd with initramfs-tools for the kernel of the boot tests.

    It runs in a mount namespace, because initramfs-tools reads only /boot and /lib/modules.
    """
    if os.geteuid() != 0 or not shutil.which("mkinitramfs"):
        pytest.skip("takes root and initramfs-tools: run scripts/test-tools")
    kernel = Path(__file__).parents[2] / ".cache/kernel"
    modules = next(kernel.glob("lib/modules/*"), None)
    if modules is None:
        pytest.skip("no kernel: run scripts/test-tools")
    image = folder / "initrd.img"
    own = not Path("/lib/modules").exists()
    script = (
        "mkdir -p /lib/modules && mount --bind $0/lib/modules /lib/modules"
        " && mount --bind $0/boot /boot && mkinitramfs -c $1 -o $2 $3"
    )
    try:
        run("unshare", "-m", "sh", "-c", script, kernel, compress, image, modules.name)
        yield image
    finally:
        if own:
            Path("/lib/modules").rmdir()


@pytest.mark.real
@pytest.mark.parametrize("compress", ["zstd", "gzip"])
def test_debian_initrd(tmp_path: Path, compress: str) -> None:
    microcode = archive(kernel__x86__microcode=file(b"\0" * 5000))
    early = {b"kernel", b"kernel/x86", b"kernel/x86/microcode"}
    with debian_initrd(tmp_path, compress) as main:
        image = tmp_path / "initrd"
        image.write_bytes(microcode + main.read_bytes())
        names = run("lsinitramfs", main).decode().splitlines()
        data = run(compress, "-dc", main)
    lines = run("cpio", "-itv", "--numeric-uid-gid", "--quiet", stdin=data).decode().splitlines()
    with open_artifact(image) as artifact:
        found = dict(artifact.tree.walk())
        assert {path.decode() or "." for path in found.keys() - early} == set(names)
        assert len(lines) == len(names)
        for line in lines:
            mode, links, uid, gid, rest = re.sub(", +", ",", line).split(maxsplit=4)
            size, month, day, year, name = rest.split(maxsplit=4)
            name = name.split(" -> ")[0]
            node = found[b"" if name == "." else name.encode()]
            assert mode == stat.filemode(node.file_type | node.mode)
            assert (int(uid), int(gid)) == (node.uid, node.gid)
            date = time.asctime(time.gmtime(node.mtime_ns // 10**9)).split()
            assert (month, day) == (date[1], date[2])
            assert year == date[4] or ":" in year
            if isinstance(node, File) and int(links) == 1:
                assert int(size) == sum(map(len, read_content(node.content)))
    extracted = tmp_path / "extracted"
    extracted.mkdir()
    run("cpio", "-idm", "--quiet", stdin=data, cwd=extracted)
    with open_artifact(image) as artifact:
        theirs = {row.path: row for row in describe(tree_on_disk(extracted))}
        for row in describe(artifact.tree):
            if row.path and row.path not in early:
                other = theirs.pop(row.path)
                assert (row.kind, row.mode, row.data) == (other.kind, other.mode, other.data)
        assert theirs.keys() == {b""}
