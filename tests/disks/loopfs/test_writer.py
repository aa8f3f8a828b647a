"""xfs and btrfs images through a loop mount."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fledge.disks.loopfs import writer as loop
from fledge.errors import CorruptError, FledgeError, HostError
from fledge.host import programs
from fledge.host.files import replacing_together
from fledge.host.settings import Settings
from fledge.tree import BlockDevice, CharDevice, Directory, Fifo, File, Node, Symlink, Tree
from fledge.tree.content import DataExtent, Span, Sparse
from tests.support.mounted import (
    list_image,
    list_tree,
    loop_devices,
    mounted,
    writable,
    writable_size,
)
from tests.support.samples import CAPABILITIES

MIB = 1 << 20
TYPES = ("xfs", "btrfs")
SETTINGS = Settings.from_environment()

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount an image")
every_type = pytest.mark.parametrize("filesystem_type", TYPES)


def sample(folder: Path) -> Tree:
    (folder / "data").write_bytes(b"d" * 5000)
    extents = DataExtent(4, 0, 2000), DataExtent(1 << 25, 2000, 3000)
    sparse = Sparse(1 << 26, folder / "data", extents)
    tree = Tree(mtime_ns=1)
    nodes: dict[bytes, Node] = {
        b"usr/bin/su": File(mode=0o4755, uid=5, content=b"su", xattrs=dict(CAPABILITIES)),
        b"dev/null": CharDevice(mode=0o666, major=1, minor=3, uid=4294967294),
        b"dev/sda": BlockDevice(mode=0o660, gid=6, major=511, minor=200_000),
        b"fifo": Fifo(mode=0o622, mtime_ns=-1_500_000_001),
        b"\n\"'\xff $(x)": File(mode=0, content=b"", mtime_ns=2**33 * 10**9 + 999),
        b"n" * 255: Directory(mode=0o1777, uid=1, mtime_ns=5, xattrs={b"user.nul": b"a\0b"}),
        b"long": Symlink(target=b"t" * 1000, uid=3, mtime_ns=7),
        b"sparse": File(mode=0o644, content=sparse),
    }
    for path, node in nodes.items():
        tree.add(path, node)
    for name in (b"dev/null", b"long", b"usr/bin/su"):
        node_again = tree.get(name)
        assert node_again
        tree.add(b"links/" + name.replace(b"/", b"-"), node_again)
    return tree


def write(
    tree: Tree,
    image: Path,
    filesystem_type: str,
    *,
    size_buffer_mb: int = 0,
    align_mb: int = 0,
    preallocate: bool = False,
) -> None:
    with replacing_together(image) as [new]:
        loop.write(
            tree,
            new,
            filesystem_type,
            size_buffer_mb=size_buffer_mb,
            align_mb=align_mb,
            preallocate=preallocate,
            settings=SETTINGS,
        )


def nothing_is_left(folder: Path) -> bool:
    """Check that no image in the folder is mounted or has a loop device."""
    return str(folder) not in Path("/proc/mounts").read_text() and not loop_devices(folder)


def mkfs_or_skip(filesystem_type: str) -> None:
    try:
        programs.find(f"mkfs.{filesystem_type}", Settings())
    except HostError as error:
        pytest.skip(error.message)


@pytest.mark.real
@as_root
@every_type
def test_the_kernel_sees_the_tree(tmp_path: Path, filesystem_type: str) -> None:
    mkfs_or_skip(filesystem_type)
    tree = sample(tmp_path)
    image = tmp_path / "out" / "image"
    image.parent.mkdir()
    image.touch()
    write(tree, image, filesystem_type, size_buffer_mb=400)
    assert list_image(image) == list_tree(tree)
    with mounted(image) as folder:
        assert os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize >= 400 * MIB
        assert (folder / "sparse").stat().st_blocks * 512 < MIB
    assert os.listdir(image.parent) == ["image"]
    assert nothing_is_left(tmp_path)


@pytest.mark.real
@as_root
@every_type
def test_what_is_asked_for_can_be_written(tmp_path: Path, filesystem_type: str) -> None:
    mkfs_or_skip(filesystem_type)
    (tmp_path / "data").write_bytes(os.urandom(60 * MIB))
    tree = Tree(mtime_ns=0)
    for number in range(600):
        content = Span(tmp_path / "data", number * 100_000, 100_000)
        tree.add(b"f%d" % number, File(mode=0o644, content=content))
    image = tmp_path / "image"
    write(tree, image, filesystem_type, size_buffer_mb=300)
    with writable(image) as root:
        for uid in (0, 1000):
            assert writable_size(root, uid) >= 300 * MIB


@pytest.mark.real
@as_root
@pytest.mark.parametrize(("filesystem_type", "size"), [("xfs", 4097), ("btrfs", 1)])
def test_many_small_files_fit(tmp_path: Path, filesystem_type: str, size: int) -> None:
    mkfs_or_skip(filesystem_type)
    tree = Tree(mtime_ns=0)
    for number in range(60_000):
        path = b"%d/%d" % (number // 250, number)
        tree.add(path, File(mode=0o644, content=b"x" * size))
    write(tree, tmp_path / "image", filesystem_type, size_buffer_mb=10)
    with writable(tmp_path / "image") as root:
        assert writable_size(root, 1000) >= 10 * MIB


@pytest.mark.real
@as_root
@every_type
def test_a_full_image_is_no_full_disk(
    tmp_path: Path, filesystem_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mkfs_or_skip(filesystem_type)
    monkeypatch.setattr(loop, "_image_size", lambda *_: loop.MIN_SIZE)
    tree = Tree(mtime_ns=0)
    (tmp_path / "data").write_bytes(os.urandom(400 * MIB))
    for number in range(4):
        content = Span(tmp_path / "data", number * 100 * MIB, 100 * MIB)
        tree.add(b"f%d" % number, File(mode=0o644, content=content))
    with pytest.raises(FledgeError, match=f"the {filesystem_type} image is too small") as caught:
        write(tree, tmp_path / "image", filesystem_type)
    assert "size_buffer_mb" in caught.value.hint
    assert nothing_is_left(tmp_path)


@pytest.mark.real
@as_root
@every_type
def test_a_size_that_a_hypervisor_wants(tmp_path: Path, filesystem_type: str) -> None:
    mkfs_or_skip(filesystem_type)
    write(Tree(mtime_ns=0), tmp_path / "image", filesystem_type, align_mb=7)
    assert (tmp_path / "image").stat().st_size % (7 * MIB) == 0


@pytest.mark.real
@as_root
def test_preallocate_leaves_no_holes(tmp_path: Path) -> None:
    mkfs_or_skip("xfs")
    image = tmp_path / "image"
    write(Tree(mtime_ns=0), image, "xfs", size_buffer_mb=1, preallocate=True)
    assert image.stat().st_blocks * 512 >= image.stat().st_size


@pytest.mark.real
@as_root
@every_type
def test_a_failure_releases_all(tmp_path: Path, filesystem_type: str) -> None:
    mkfs_or_skip(filesystem_type)
    tree = Tree(mtime_ns=0)
    tree.add(b"a/f", File(mode=0o644, content=Span(tmp_path / "gone", 0, 1)))
    image = tmp_path / "image"
    image.touch()
    with pytest.raises(FledgeError, match="gone"):
        write(tree, image, filesystem_type)
    assert os.listdir(tmp_path) == ["image"]
    assert nothing_is_left(tmp_path)


@pytest.mark.real
@as_root
def test_what_the_filesystem_cannot_hold_is_named(tmp_path: Path) -> None:
    mkfs_or_skip("xfs")
    tree = Tree(mtime_ns=0)
    tree.add(b"dev/x", BlockDevice(mode=0, major=4095, minor=1))
    (tmp_path / "image").touch()
    with pytest.raises(CorruptError, match="/dev/x does not fit"):
        write(tree, tmp_path / "image", "xfs")


@pytest.mark.real
@as_root
@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGKILL])
def test_a_signal_releases_all(tmp_path: Path, kind: signal.Signals) -> None:
    mkfs_or_skip("xfs")
    image = tmp_path / "image"
    image.touch()
    # The build waits where it would fill the mount.
    script = f"""
import time
from pathlib import Path
from fledge.disks.loopfs import writer as loop
from fledge.host.files import replacing_together
from fledge.host.settings import Settings
from fledge.tree import Tree
def wait(tree, root):
    print("mounted", flush=True)
    time.sleep(60)
loop.folder.populate = wait
with replacing_together(Path({str(tmp_path)!r}) / "image") as [new]:
    loop.write(Tree(mtime_ns=0), new, "xfs", settings=Settings.from_environment())
"""
    command = [sys.executable, "-c", script]
    build = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert build.stdout
    try:
        assert build.stdout.readline() == b"mounted\n"
        assert not nothing_is_left(tmp_path)
        build.send_signal(kind)
        build.wait(30)
    finally:
        build.kill()
        build.wait()
    # After SIGKILL the kernel cleans up.
    for _ in range(100):
        if nothing_is_left(tmp_path):
            break
        time.sleep(0.1)
    assert nothing_is_left(tmp_path)
    if kind == signal.SIGINT:
        assert os.listdir(tmp_path) == ["image"]


def test_root_is_asked_for_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(HostError, match="root") as error:
        loop.check("xfs", Settings())
    assert "ext4" in error.value.hint


@as_root
@pytest.mark.parametrize(
    ("filesystem_type", "package"), [("xfs", "xfsprogs"), ("btrfs", "btrfs-progs")]
)
def test_a_missing_mkfs_is_explained(
    monkeypatch: pytest.MonkeyPatch, filesystem_type: str, package: str
) -> None:
    monkeypatch.setattr("fledge.host.programs.SYSTEM_FOLDERS", "/nowhere")
    with pytest.raises(HostError, match=f"mkfs.{filesystem_type}") as error:
        loop.check(filesystem_type, Settings({"PATH": "/nowhere"}))
    assert package in error.value.hint


@pytest.mark.real
@as_root
def test_missing_loop_devices_are_explained(tmp_path: Path) -> None:
    """In its own mount namespace, whose /dev has no loop device."""
    mkfs_or_skip("xfs")
    script = """
import sys
from pathlib import Path
from fledge.disks.loopfs import writer as loop
from fledge.host.files import replacing_together
from fledge.host.settings import Settings
from fledge.errors import HostError
from fledge.tree import Tree
try:
    with replacing_together(Path("image")) as [new]:
        loop.write(Tree(mtime_ns=0), new, "xfs", settings=Settings.from_environment())
except HostError as error:
    print(error.message)
"""
    (tmp_path / "image").touch()
    hide = 'mount -t tmpfs none /dev && mknod /dev/null c 1 3 && exec "$@"'
    command = ["unshare", "--mount", "sh", "-c", hide, "sh", sys.executable, "-c", script]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "no loop device is free" in done.stdout, done.stderr
