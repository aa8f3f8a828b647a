"""Images of fledge's erofs writer, judged by fsck.erofs, dump.erofs and the kernel."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fledge.disks.erofs import directory
from fledge.disks.erofs.format import Compression, Erofs
from fledge.disks.erofs.plan import ALIGNMENT
from fledge.disks.erofs.reader import Image, read
from fledge.disks.erofs.structures import BLOCK_SIZE, DataLayout
from fledge.errors import CorruptError, FledgeError
from fledge.formats import open_artifact
from fledge.host import output
from fledge.tree import Directory, File, Symlink, Tree
from fledge.tree.content import (
    Content,
    DataExtent,
    Span,
    Sparse,
    content_size,
    hash_file,
    read_content,
)
from fledge.tree.digest import Digest
from tests.support import daemons, golden
from tests.support.bounded import in_a_child
from tests.support.disks import write
from tests.support.files import irregular
from tests.support.mounted import list_folder, list_image, list_tree, mounted
from tests.support.samples import EPOCH, sample
from tests.support.trees import MAX_ID, describe, trees

MIB = 1 << 20
COMPRESSIONS: tuple[Compression, ...] = ("none", "lz4", "zstd")
every_compression = pytest.mark.parametrize("compression", COMPRESSIONS)

TEXT = b"".join(b"line %d of a text\n" % number for number in range(40_000))
NOISE = Random(1).randbytes(1 << 18)  # noqa: S311 -- data that does not compress


@pytest.fixture(scope="module")
def fast() -> Iterator[Path]:
    """A folder in memory if there is one."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as folder:
        yield Path(folder)


def rich(folder: Path) -> Tree:
    """The sample with everything that erofs stores in a way of its own."""
    tree = sample()
    contents: dict[bytes, Content] = {
        b"text": TEXT,
        b"noise": NOISE,
        b"mixed": NOISE[:150_000] + TEXT[:150_001],
        b"short text": TEXT[:5000],
        b"holes": holes(folder / "data", 1 << 22, (1 << 13, 5000), (1 << 20, 4000)),
        b"only a hole": holes(folder / "data", 3 << 20),
        b"no holes": holes(folder / "data", 9000, (0, 9000)),
    }
    for name, content in contents.items():
        tree.root.children[name] = File(mode=0o644, content=content)
    for size in (BLOCK_SIZE - 65, BLOCK_SIZE - 64, BLOCK_SIZE - 63, BLOCK_SIZE, BLOCK_SIZE + 1):
        tree.root.children[b"%d bytes" % size] = File(mode=0o644, content=TEXT[:size])
        tree.root.children[b"link of %d" % size] = Symlink(target=b"t/" * (size // 2 - 5))
    crowd = tree.root.children[b"crowd"] = Directory(mode=0o755)
    for number in range(700):
        crowd.children[b"a name that takes its place %d" % number] = tree.root.children[b"text"]
    for number in range(3):
        shared = {b"user.same": b"s" * 5000, b"security.own%d" % number: b"o" * 60_000}
        tree.root.children[b"%d" % number] = File(mode=0o600, content=b"", xattrs=shared)
    for name in (b"!", b"-", b"..a", b".a", b"...", b"\xff"):
        crowd.children[name] = Directory(mode=0o700)
    return tree


def holes(path: Path, size: int, *extents: tuple[int, int]) -> Sparse:
    """Make a content with holes of a file of text. An extent is an offset and a length."""
    path.write_bytes(TEXT[: 1 << 16])
    return Sparse(size, path, tuple(DataExtent(offset, 7, length) for offset, length in extents))


def fsck(path: Path, *options: str) -> None:
    """Check with fsck.erofs, which must find nothing."""
    daemons.need("fsck.erofs")
    done = subprocess.run(
        ["fsck.erofs", *options, path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout + done.stderr == ""


@pytest.mark.real
@every_compression
def test_the_kernel_and_fsck_agree(compression: Compression, tmp_path: Path) -> None:
    tree = rich(tmp_path)
    write(tree, tmp_path / "image", Erofs(compression))
    assert list_image(tmp_path / "image") == list_tree(tree)
    if compression != "zstd":  # Debian's erofs-utils are too old for it
        fsck(tmp_path / "image")


@pytest.mark.real
@pytest.mark.parametrize("compression", ["none", "lz4"])
def test_fsck_extracts_it(compression: Compression, tmp_path: Path) -> None:
    tree = rich(tmp_path)
    # erofs-utils 1.5 leave out the holes of what they extract.
    del tree.root.children[b"holes"], tree.root.children[b"only a hole"]
    write(tree, tmp_path / "image", Erofs(compression))
    fsck(tmp_path / "image", f"--extract={tmp_path / 'out'}")
    extracted, expected = list_folder(tmp_path / "out"), list_tree(tree)
    assert extracted.keys() == expected.keys()
    for path, entry in extracted.items():
        # It restores no setuid bits.
        assert entry.mode & ~0o7000 == expected[path].mode & ~0o7000
        assert entry.data == expected[path].data


@pytest.mark.real
def test_dump_shows_the_superblock(tmp_path: Path) -> None:
    daemons.need("dump.erofs")
    tree = rich(tmp_path)
    write(tree, tmp_path / "image", Erofs())
    said = subprocess.check_output(["dump.erofs", "-s", tmp_path / "image"], text=True)
    facts = dict(re.findall(r"^(.+?):\s+(.*)$", said, re.MULTILINE))
    superblock = read(tmp_path / "image").superblock
    uuid = superblock.uuid.hex()
    assert facts["Filesystem UUID"].replace("-", "") == uuid
    assert uuid[12] == "4"
    assert int(facts["Filesystem blocks"]) * BLOCK_SIZE == (tmp_path / "image").stat().st_size
    assert int(facts["Filesystem inode count"]) == len({node for _, node in tree.walk()})
    assert facts["Filesystem features"].split() == ["sb_csum", "mtime", "chunked_file"]
    counts = subprocess.check_output(["dump.erofs", "-S", tmp_path / "image"], text=True)
    assert re.search(r"^Filesystem uncompressed files:\s+\d+$", counts, re.MULTILINE)


XATTRS = st.dictionaries(
    st.sampled_from([b"user.", b"trusted.", b"security."]).flatmap(
        lambda prefix: st.binary(min_size=1, max_size=30).map(
            lambda name: prefix + name.replace(b"\0", b"0")
        )
    ),
    st.binary(max_size=300) | st.sampled_from([b"", b"x" * 40, b"x" * 3900]),
    max_size=4,
)

SIZES = st.builds(
    lambda blocks, more: max(0, blocks * BLOCK_SIZE + more),
    st.sampled_from([0, 1, 2, 16, 17, 33]),
    st.integers(-100, 1),
)
"""Sizes near multiples of the block size and that of extents."""

TIMES = st.integers(-(1 << 63) * 10**9, (1 << 63) * 10**9 - 1)
"""All times that erofs can store, in nanoseconds."""


@st.composite
def pieces(draw: st.DrawFn, source: Path) -> Content:
    """Pieces of a file of 64 KiB that touch, share blocks or are far apart."""
    extents: list[DataExtent] = []
    end = 0
    gaps = st.sampled_from([0, 0, 1, 4095, 4096, 5000, 1 << 20, 1 << 30])
    for gap, start, length in draw(
        st.lists(st.tuples(gaps, st.integers(0, 32 << 10), st.integers(1, 9000)), max_size=8)
    ):
        extents.append(DataExtent(end + gap, start, length))
        end += gap + length
    return Sparse(end + draw(st.sampled_from([0, 1, 4096, 1 << 21])), source, tuple(extents))


def plausible(tree: Tree, number: int = 3) -> Tree:
    """Let the nodes of a random tree be as Linux has them, of several origins."""
    for index, (_, node) in enumerate(tree.walk()):
        node.origin = index % number
        node.uid, node.gid = min(node.uid, MAX_ID - 1), min(node.gid, MAX_ID - 1)
        if isinstance(node, Symlink):
            node.mode = 0o777
    return tree


@pytest.mark.real
def test_a_thousand_trees(fast: Path) -> None:
    """The reader gets back each of them, and fsck.erofs and the kernel all of them together."""
    (fast / "source").write_bytes(TEXT[: 1 << 16])
    forest = Tree(mtime_ns=EPOCH * 10**9)
    contents: st.SearchStrategy[Content] = st.one_of(
        st.binary(max_size=50),
        SIZES.map(lambda size: TEXT[:size]),
        SIZES.map(lambda size: NOISE[:size]),
    )
    small = pieces(fast / "source").filter(lambda content: content_size(content) < 1 << 22)

    @settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        group=st.lists(
            trees(times=TIMES, contents=contents | small, xattrs=XATTRS, max_nodes=7),
            min_size=4,
            max_size=4,
        ),
        compression=st.sampled_from(COMPRESSIONS),
    )
    def check(group: list[Tree], compression: Compression) -> None:
        together = Tree(mtime_ns=0)
        for number, tree in enumerate(group):
            together.root.children[b"%d" % number] = plausible(tree).root
        write(together, fast / "image", Erofs(compression))
        assert describe(read(fast / "image").tree) == describe(together)
        for _, node in together.walk():
            node.mtime_ns %= 1 << 62  # what os.stat() can tell
            if not isinstance(node, File | Directory):
                # The kernel lists user attributes of others, but does not read them (xattr(7)).
                kept = (each for each in node.xattrs.items() if not each[0].startswith(b"user."))
                node.xattrs = dict(kept)
        forest.root.children[b"%d" % len(forest.root.children)] = together.root

    check()
    assert len(forest.root.children) >= 250
    for compression in COMPRESSIONS:
        write(forest, fast / "image", Erofs(compression))
        assert list_image(fast / "image") == list_tree(forest)
        if compression != "zstd":
            fsck(fast / "image")


@pytest.mark.slow
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(tree=trees(times=TIMES, xattrs=XATTRS), data=st.data())
def test_the_order_in_which_a_tree_was_made_does_not_matter(
    tmp_path_factory: pytest.TempPathFactory, tree: Tree, data: st.DataObject
) -> None:
    plausible(tree)
    folder = tmp_path_factory.getbasetemp()
    first = write(tree, folder / "first", Erofs())
    for _, node in tree.walk():
        node.xattrs = dict(data.draw(st.permutations(list(node.xattrs.items()))))
        if isinstance(node, Directory):
            node.children = dict(data.draw(st.permutations(list(node.children.items()))))
    assert write(tree, folder / "second", Erofs()) == first


def test_every_mode_and_layout_is_read_back(tmp_path: Path) -> None:
    tree = rich(tmp_path)
    layouts = {
        "none": {DataLayout.FLAT_PLAIN, DataLayout.FLAT_INLINE, DataLayout.CHUNK_BASED},
        "lz4": {*DataLayout} - {DataLayout.COMPRESSED_COMPACT},
    }
    for compression in ("none", "lz4"):
        write(tree, tmp_path / "image", Erofs(compression))
        image = read(tmp_path / "image")
        assert describe(image.tree) == describe(tree)
        assert {facts.layout for facts in image.inodes.values()} == layouts[compression]
        assert all(facts.links for facts in image.inodes.values())


@pytest.mark.slow
@every_compression
def test_golden(compression: Compression, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = golden.EROFS[compression]
    assert write(rich(tmp_path), tmp_path / "image", Erofs(compression)).hex == expected
    assert hashlib.sha256((tmp_path / "image").read_bytes()).hexdigest() == expected
    monkeypatch.setattr(output, "_set_direct", lambda *_: False)
    assert write(rich(tmp_path), tmp_path / "image", Erofs(compression)).hex == expected


SCRIPT = """
import os, sys
from pathlib import Path
os.umask(int(sys.argv[2], 8))
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
os.cpu_count = lambda: int(sys.argv[3])
from fledge.disks.erofs.format import Erofs
from tests.disks.erofs import test_writer
from tests.support.disks import write
folder = Path(sys.argv[1])
for compression in ("none", "lz4", "zstd"):
    print(write(test_writer.rich(folder), folder / "image", Erofs(compression)).hex)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("umask", "cores", "environment"),
    [
        ("077", "1", {"TZ": "Pacific/Kiritimati", "LC_ALL": "C", "PYTHONHASHSEED": "1"}),
        ("002", "64", {"TZ": "America/St_Johns", "LANG": "tr_TR.UTF-8", "PYTHONHASHSEED": "2"}),
    ],
)
def test_golden_elsewhere(
    umask: str, cores: str, environment: dict[str, str], tmp_path: Path
) -> None:
    said = subprocess.check_output(
        [sys.executable, "-c", SCRIPT, tmp_path, umask, cores],
        env=os.environ | environment,
        cwd=Path(__file__).parents[3],
        text=True,
    )
    assert said.split() == list(golden.EROFS.values())


def test_levels_differ(tmp_path: Path) -> None:
    tree = Tree(mtime_ns=0)
    tree.root.children[b"text"] = File(mode=0o644, content=TEXT)
    for compression in ("lz4", "zstd"):
        sizes = []
        for level in (1, 12):
            write(tree, tmp_path / "image", Erofs(compression, level))
            sizes.append((tmp_path / "image").stat().st_size)
        assert sizes[0] != sizes[1]
        assert max(sizes) < len(TEXT) // 2


def test_a_level_that_lz4_does_not_have() -> None:
    with pytest.raises(ValueError, match="compression_level = 13: lz4 has the levels 1 to 12"):
        Erofs("lz4", 13)
    assert Erofs("zstd", 19).compression_level == 19


def test_different_filesystems_have_different_uuids(tmp_path: Path) -> None:
    def uuid_of(tree: Tree, options: Erofs) -> bytes:
        write(tree, tmp_path / "image", options)
        return read(tmp_path / "image").superblock.uuid

    plain, later = Tree(mtime_ns=0), Tree(mtime_ns=10**9)
    named = Tree(mtime_ns=0)
    named.root.children[b"name"] = File(mode=0o644, content=b"")
    found = [uuid_of(tree, Erofs()) for tree in (plain, later, named)]
    found += [uuid_of(plain, Erofs("lz4", level)) for level in (1, 2)]
    assert len(set(found)) == len(found)
    assert uuid_of(plain, Erofs("none", 5)) == found[0]


@pytest.mark.parametrize(
    ("xattrs", "problem"),
    [
        ({b"user.x": bytes(65536)}, "attribute user.x has 65536 bytes; erofs takes 65535"),
        ({b"system.nfs4_acl": b"x"}, "no place for the extended attribute system.nfs4_acl"),
        ({b"user.": b""}, "no place for the extended attribute user."),
        ({b"user": b""}, "no place for the extended attribute user"),
        ({b"user.%d" % n: bytes(60_000) for n in range(5)}, "of extended attributes; erofs takes"),
    ],
)
def test_attributes_that_erofs_cannot_store(
    xattrs: dict[bytes, bytes], problem: str, tmp_path: Path
) -> None:
    tree = Tree(mtime_ns=0)
    tree.add(b"some/where", File(mode=0o644, content=b"", xattrs=xattrs))
    with pytest.raises(CorruptError, match=f"/some/where: .*{re.escape(problem)}"):
        write(tree, tmp_path / "image", Erofs())
    assert not (tmp_path / "image").exists()


def test_numbers_that_erofs_cannot_store(tmp_path: Path) -> None:
    tree = Tree(mtime_ns=0)
    tree.add(b"late", File(mode=0o644, content=b"", mtime_ns=(1 << 63) * 10**9))
    with pytest.raises(CorruptError, match="/late: its time has more than 64 bits"):
        write(tree, tmp_path / "image", Erofs())
    tree.add(b"late", File(mode=0o644, content=holes(tmp_path / "data", 1 << 63)))
    with pytest.raises(CorruptError, match="/late: a file of 9223372036854775808 bytes"):
        write(tree, tmp_path / "image", Erofs())
    tree.add(b"late", File(mode=0o644, content=Span(tmp_path / "none", 0, 1 << 45)))
    with pytest.raises(CorruptError, match="erofs takes 4294967295"):
        write(tree, tmp_path / "image", Erofs())


def test_more_shared_attributes_than_an_inode_can_refer_to(tmp_path: Path) -> None:
    tree = Tree(mtime_ns=0)
    for name in (b"a", b"b"):
        xattrs = {b"user.%d" % number: b"v" for number in range(300)}
        tree.root.children[name] = File(mode=0o644, content=b"", xattrs=xattrs)
    write(tree, tmp_path / "image", Erofs())
    assert describe(read(tmp_path / "image").tree) == describe(tree)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(st.sets(st.binary(min_size=1, max_size=255).filter(lambda name: not {*b"\0/"} & {*name})))
def test_the_blocks_of_a_directory(names: set[bytes]) -> None:
    names |= {b".", b".."}
    packed = directory.pack((name, number, 1) for number, name in enumerate(names))
    assert len(packed) == directory.size(sorted(names))
    found = [
        entry
        for start in range(0, len(packed), BLOCK_SIZE)
        for entry in directory.unpack(packed[start : start + BLOCK_SIZE])
    ]
    assert found == sorted((name, number) for number, name in enumerate(names))


@pytest.mark.real
def test_the_kernel_finds_every_name(tmp_path: Path) -> None:
    """It searches blocks, and the names in a block, by halves."""
    tree = Tree(mtime_ns=0)
    file = File(mode=0o644, content=b"")
    for number in range(20_000):
        tree.root.children[b"%x" % (number * 7919)] = file
    write(tree, tmp_path / "image", Erofs())
    with mounted(tmp_path / "image") as folder:
        assert all((folder / os.fsdecode(name)).exists() for name in tree.root.children)
        assert not (folder / "absent").exists()
        assert len(os.listdir(folder)) == 20_000


@pytest.mark.real
def test_a_file_of_a_tebibyte(tmp_path: Path) -> None:
    """It takes little space wherever its data is, and the kernel reads beyond 4 GiB."""
    content = holes(tmp_path / "data", 1 << 40, (5, 3000), (5 << 30, 9000), ((1 << 40) - 9, 9))
    tree = Tree(mtime_ns=0)
    tree.root.children[b"f"] = File(mode=0o644, content=content)
    write(tree, tmp_path / "image", Erofs())
    assert (tmp_path / "image").stat().st_size <= 8 * MIB
    with mounted(tmp_path / "image") as folder, (folder / "f").open("rb") as file:
        assert os.fstat(file.fileno()).st_size == 1 << 40
        for offset, source, length in content.extents:
            found = os.pread(file.fileno(), length + 100, offset)
            assert found.rstrip(b"\0") == TEXT[source : source + length].rstrip(b"\0")
        assert os.pread(file.fileno(), 9000, 9 << 30) == bytes(9000)


def changed_file(path: Path, size: int) -> File:
    """A file of the host that has changed at its end since it was hashed."""
    path.write_bytes(TEXT[:size])
    blob = hash_file(path)
    path.write_bytes(TEXT[: size - 1] + b"!")
    return File(mode=0o644, content=blob)


@every_compression
@pytest.mark.parametrize("size", [100, BLOCK_SIZE, 10_000, 500_000])
def test_a_file_that_has_changed(compression: Compression, size: int, tmp_path: Path) -> None:
    tree = Tree(mtime_ns=0)
    tree.root.children[b"f"] = changed_file(tmp_path / "source", size)
    with pytest.raises(CorruptError, match="source changed while it was read, or is damaged"):
        write(tree, tmp_path / "image", Erofs(compression))
    tree.root.children[b"f"] = File(mode=0o644, content=hash_file(tmp_path / "source"))
    write(tree, tmp_path / "image", Erofs(compression))
    assert sorted(os.listdir(tmp_path)) == ["image", "source"]


def test_a_fifo_in_place_of_a_file_is_not_waited_for(tmp_path: Path) -> None:
    tree = Tree(mtime_ns=0)
    content = Span(irregular(tmp_path, "fifo"), 0, 5, Digest.of(b"hello"))
    tree.add(b"file", File(mode=0o644, content=content))
    with pytest.raises(FledgeError, match="it is a fifo, not a regular file"):
        write(tree, tmp_path / "image", Erofs())


def in_layers(top: bytes) -> Tree:
    """A tree of two layers. Only the second one depends on ``top``."""
    tree = Tree(mtime_ns=0)
    for number in range(40):
        name = b"usr/lib/%d" % number
        tree.add(name, File(mode=0o644, content=(NOISE + b"%d" % number) * 2))
    tree.origin = 1
    for number in range(10):
        tree.add(b"app/%d" % number, File(mode=0o644, content=top + NOISE * 2))
    return tree


def test_a_change_of_a_layer_moves_nothing_of_lower_ones(tmp_path: Path) -> None:
    chunks = []
    for top in (b"", b"longer" * 100_000):
        write(in_layers(top), tmp_path / "image", Erofs())
        data = (tmp_path / "image").read_bytes()
        size = ALIGNMENT * BLOCK_SIZE
        parts = {data[start : start + size] for start in range(0, len(data), size)}
        chunks.append(parts)
        image = read(tmp_path / "image")
        starts = sorted(offsets(image))
        assert starts[0] % size == 0
    lower = 40 * 2 * len(NOISE) // size
    assert len(chunks[0] & chunks[1]) >= lower - 1


def offsets(image: Image) -> Iterator[int]:
    for _, node in image.tree.walk():
        if isinstance(node, File) and isinstance(node.content, Sparse):
            yield node.content.extents[0].source


@pytest.mark.slow
@pytest.mark.parametrize("compression", ["none", "lz4"])
def test_memory_does_not_grow_with_files(compression: Compression, tmp_path: Path) -> None:
    def work(size: int) -> int:
        tree = Tree(mtime_ns=0)
        with (tmp_path / "source").open("wb") as source:
            for _ in range(size // len(NOISE)):
                source.write(NOISE)
        tree.root.children[b"f"] = File(mode=0o644, content=Span(tmp_path / "source", 0, size))
        write(tree, tmp_path / "image", Erofs(compression, 1))
        with open_artifact(tmp_path / "image") as opened:
            [file] = opened.tree.root.children.values()
            assert isinstance(file, File)
            return sum(map(len, read_content(file.content)))

    peaks = []
    for size in (24 * MIB, 96 * MIB):
        found, peak = in_a_child(lambda size=size: work(size), 60)  # type: ignore[misc]
        assert found == size
        peaks.append(peak)
    assert peaks[1] < peaks[0] + 16 * MIB
