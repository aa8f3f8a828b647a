"""ext4 images of both builders, judged by the kernel and by e2fsck."""

from __future__ import annotations

import hashlib
import os
import pickle
import struct
import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fledge.errors import CorruptError, HostError
from fledge.ext4.format import Builder, Ext4
from fledge.host.settings import Settings
from fledge.tree import BlockDevice, CharDevice, Directory, Fifo, File, Node, Symlink, Tree
from fledge.tree.content import DataExtent, Span, Sparse
from tests.support.disks import write_ext4
from tests.support.mounted import list_image, list_tree
from tests.support.pythons import nobody
from tests.support.samples import ACL, EPOCH, TIMES, sample
from tests.support.trees import MAX_ID, NAMES, trees

MIB = 1 << 20
# Hypothesis leaves out lost+found, which must not be a file.
ONE_LINE_NAMES = NAMES.filter(lambda name: not set(name) & set(b"\r\n") and name != b"lost+found")
XATTRS = st.dictionaries(
    st.binary(min_size=1, max_size=40)
    .filter(lambda name: not set(name) & set(b"\0\r\n"))
    .map(b"trusted.".__add__),
    st.binary(max_size=60),
    max_size=3,
)


every_builder = pytest.mark.parametrize("builder", get_args(Builder))


def build(
    tree: Tree,
    path: Path,
    *,
    size_buffer_mb: int = 1,
    preallocate: bool = False,
    builder: Builder = "native",
) -> Path:
    path.touch()
    write_ext4(tree, path, Ext4(size_buffer_mb, builder, preallocate), EPOCH)
    # By its descriptor, because e2fsck parses options after a ? in a name.
    with path.open("rb") as file:
        command = ["e2fsck", "-fn", "/proc/self/fd/0"]
        done = subprocess.run(command, stdin=file, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert os.listdir(path.parent) == [path.name]
    return path


def free(image: Path) -> tuple[int, int]:
    """Return free bytes and free inodes, from the superblock."""
    with image.open("rb") as file:
        superblock = os.pread(file.fileno(), 1024, 1024)
    blocks, inodes = struct.unpack_from("<II", superblock, 12)
    return blocks * 4096, inodes


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@every_builder
@pytest.mark.real
def test_the_kernel_sees_the_tree(tmp_path: Path, builder: Builder) -> None:
    tree = sample()
    assert list_image(build(tree, tmp_path / "x?offset=4096.img", builder=builder)) == list_tree(
        tree
    )


@every_builder
@pytest.mark.real
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(tree=trees(names=ONE_LINE_NAMES, times=TIMES, xattrs=XATTRS))
def test_the_kernel_sees_any_tree(tree: Tree, builder: Builder) -> None:
    for _, node in tree.walk():
        node.uid, node.gid = min(node.uid, MAX_ID - 1), min(node.gid, MAX_ID - 1)
    with tempfile.TemporaryDirectory() as folder:
        assert list_image(build(tree, Path(folder, "image"), builder=builder)) == list_tree(tree)


@every_builder
@pytest.mark.real
def test_the_same_tree_gives_the_same_bytes_to_anyone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, builder: Builder
) -> None:
    expected = digest(build(sample(), tmp_path / "image", builder=builder))
    (tmp_path / "image").unlink()
    monkeypatch.setenv("TZ", "Asia/Kathmandu")
    monkeypatch.setenv("MKE2FS_CONFIG", "/nowhere")
    before = os.umask(0o777)
    with ExitStack() as after:
        after.callback(os.umask, before)
        assert digest(build(sample(), tmp_path / "image", builder=builder)) == expected


@every_builder
@pytest.mark.real
def test_root_and_a_user_without_rights_give_the_same_bytes(
    tmp_path: Path, builder: Builder
) -> None:
    tree = sample()
    expected = digest(build(tree, tmp_path / "image", builder=builder))
    script = f"""
import pickle
from pathlib import Path
from contextlib import closing
from fledge.ext4.format import Ext4
from fledge.host.destination import Destination
from fledge.host.files import replacing_together
from fledge.host.output import Hasher
from fledge.host.settings import Settings
from fledge.report import Reporter
tree = pickle.load(open("tree", "rb"))
tree.mtime_ns = {EPOCH} * 10**9
with replacing_together(Path("image")) as [new], closing(Hasher()) as hasher:
    settings = Settings.from_environment()
    destination = Destination(new, hasher, Reporter(), settings)
    Ext4(1, {builder!r}).write(tree, destination)
"""
    with nobody() as user:
        for node in tree.nodes():
            node.xattrs = dict(node.xattrs)  # the read-only one of most nodes cannot be pickled
        (user.home / "tree").write_bytes(pickle.dumps(tree))
        done = user.run([user.python, "-c", script])
        assert done.returncode == 0, done.stderr
        assert digest(user.home / "image") == expected


@every_builder
@pytest.mark.real
@pytest.mark.parametrize("buffer_mb", [1, 100, 700])
def test_the_free_space_is_what_was_asked_for(
    tmp_path: Path, buffer_mb: int, builder: Builder
) -> None:
    tree = sample()
    (tmp_path / "blob").write_bytes(bytes(range(1, 256)) * 1000)
    blob = tmp_path / "blob"
    for number in range(3000):
        content = Span(blob, number, number * 50)
        tree.add(b"files/%d" % number, File(mode=0o644, content=content))
    (tmp_path / "out").mkdir()
    image = build(tree, tmp_path / "out/i", size_buffer_mb=buffer_mb, builder=builder)
    free_bytes, free_inodes = free(image)
    wanted = buffer_mb * MIB
    withheld = min(image.stat().st_size // 50, 16 * MIB)
    assert wanted <= free_bytes - withheld <= wanted * 1.01 + 2 * MIB
    assert free_inodes >= wanted // 16384


@pytest.mark.real
def test_without_a_size_there_is_room_in_proportion(tmp_path: Path) -> None:
    free_bytes, _ = free(build(sample(), tmp_path / "image", size_buffer_mb=0))
    assert 64 * MIB <= free_bytes <= 66 * MIB


@every_builder
@pytest.mark.real
def test_holes_stay_holes_unless_all_is_preallocated(tmp_path: Path, builder: Builder) -> None:
    (tmp_path / "data").write_bytes(b"d" * 5000)
    (tmp_path / "out").mkdir()
    tree = Tree(mtime_ns=0)
    extents = DataExtent(4, 0, 2000), DataExtent(1 << 26, 2000, 3000)
    sparse = Sparse(1 << 27, tmp_path / "data", extents)
    tree.add(b"f", File(mode=0o644, content=sparse))
    image = build(tree, tmp_path / "out/image", builder=builder)
    assert image.stat().st_size < 16 * MIB
    assert list_image(image) == list_tree(tree)
    unallocated = digest(image)
    build(tree, image, preallocate=True, builder=builder)
    assert image.stat().st_blocks * 512 >= image.stat().st_size
    assert digest(image) == unallocated


@every_builder
@pytest.mark.real
def test_two_images_have_two_uuids(tmp_path: Path, builder: Builder) -> None:
    uuids = set()
    for content in (b"a", b"b"):
        tree = Tree(mtime_ns=0)
        tree.add(b"f", File(mode=0o644, content=content))
        uuids.add(
            build(tree, tmp_path / "image", builder=builder).read_bytes()[1024 + 104 : 1024 + 120]
        )
    assert len(uuids) == 2


@every_builder
@pytest.mark.real
def test_lost_and_found_is_the_tree_s_own(tmp_path: Path, builder: Builder) -> None:
    tree = Tree(mtime_ns=0)
    tree.add(b"lost+found/x", File(mode=0o644, content=b"x"))
    tree.add(b"a", Directory(mode=0o700))
    assert list_image(build(tree, tmp_path / "image", builder=builder)) == list_tree(tree)


@pytest.mark.real
def test_a_deep_tree_is_removed_again(tmp_path: Path) -> None:
    tree = Tree(mtime_ns=0)
    tree.add(b"dd/" + b"/".join([b"d"] * 1990), Directory(mode=0o755))
    build(tree, tmp_path / "image", builder="mkfs")


@every_builder
@pytest.mark.parametrize(
    ("path", "node", "words"),
    [
        (b"f", File(mode=0, content=b"", xattrs={b"user.x": b"x" * 4096}), "ext4 has"),
        (b"f", File(mode=0, content=b"", xattrs={b"strange.x": b""}), "no place for"),
        (b"f", File(mode=0, content=b"", xattrs={b"user.": b""}), "no place for"),
        (b"f", File(mode=0, content=b"", xattrs={b"system.x": b""}), "no place for"),
        (b"f", File(mode=0, content=b"", xattrs={b"user." + b"x" * 251: b""}), "no place for"),
        (b"n" * 256, File(mode=0, content=b""), "name is longer"),
        (b"f", File(mode=0, content=b"", xattrs={b"system.posix_acl_access": b"x"}), "malformed"),
        (
            b"f",
            File(mode=0, content=b"", xattrs={b"system.posix_acl_access": ACL[:4]}),
            "malformed",
        ),
        (b"f", File(mode=0, content=Sparse(1 << 45, Path("x"), ())), "ext4 takes"),
        (b"lost+found", File(mode=0, content=b""), "directory"),
        (b"l", Symlink(target=b"x" * 4096), "4095"),
        (b"f", File(mode=0, uid=0xFFFFFFFF, content=b""), "no owner 4294967295:0"),
        (b"f", File(mode=0, gid=1 << 32, content=b""), "no owner 0:4294967296"),
        (b"f", Fifo(mode=0, uid=-1), "no owner -1:0"),
        (b"d", CharDevice(mode=0, major=1 << 12, minor=0), "no device 4096:0"),
        (b"d", BlockDevice(mode=0, major=0, minor=1 << 20), "no device 0:1048576"),
        (b"l", Symlink(target=b""), "4095"),
        (b"/".join([b"d"] * 2100), Directory(mode=0), "path is longer"),
    ],
)
def test_what_does_not_fit_is_named(
    tmp_path: Path, path: bytes, node: Node, words: str, builder: Builder
) -> None:
    tree = Tree(mtime_ns=0)
    tree.add(path, node)
    assert_refused(tree, tmp_path / "image", words, builder)


@pytest.mark.real
@pytest.mark.parametrize(
    ("path", "node", "words"),
    [
        (b"f", File(mode=0, content=b"", xattrs={b"user.a\nquit": b""}), "no place for"),
        (b"a\nquit", CharDevice(mode=0, major=1, minor=3), "line break"),
        (b"/".join([b"ddd"] * 510), Directory(mode=0), "2039"),
    ],
)
def test_what_only_e2fsprogs_cannot_make(
    tmp_path: Path, path: bytes, node: Node, words: str
) -> None:
    tree = Tree(mtime_ns=0)
    tree.add(path, node)
    assert_refused(tree, tmp_path / "image", words, "mkfs")
    build(tree, tmp_path / "image")


def assert_refused(tree: Tree, image: Path, words: str, builder: Builder) -> None:
    image.touch()
    with pytest.raises(CorruptError, match=words) as error:
        write_ext4(tree, image, Ext4(1, builder), EPOCH)
    assert error.value.message.startswith("/")
    assert error.value.hint
    assert os.listdir(image.parent) == [image.name]


@pytest.mark.slow
def test_too_large_a_filesystem_is_refused(tmp_path: Path) -> None:
    (tmp_path / "image").touch()
    with pytest.raises(CorruptError, match="ext4 takes 4294967295"):
        write_ext4(Tree(mtime_ns=0), tmp_path / "image", Ext4(size_buffer_mb=1 << 24), EPOCH)


@pytest.mark.real
def test_line_breaks_in_names_are_no_commands(tmp_path: Path) -> None:
    tree = Tree(mtime_ns=0)
    tree.add(b"a\nquit", Fifo(mode=0))
    build(tree, tmp_path / "image", builder="mkfs")


def test_missing_e2fsprogs_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fledge.host.programs.SYSTEM_FOLDERS", "/nowhere")
    with pytest.raises(HostError) as error:
        Ext4(builder="mkfs").check(Settings({"PATH": "/nowhere"}))
    assert "e2fsprogs" in error.value.hint
