"""fledge inspect: artifacts of fledge and of others, as text and as JSON."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import pty
import shutil
import socket
import stat
import struct
import subprocess
import sys
from base64 import b64decode
from fcntl import ioctl
from pathlib import Path
from typing import Any

import pytest

from fledge.cpio import newc
from fledge.ext4.format import Ext4
from fledge.tree import CharDevice, Directory, File, Node, Symlink, Tree
from fledge.tree.content import Sparse
from tests.support import daemons, project
from tests.support.disks import write_ext4
from tests.support.mounted import mounted
from tests.support.project import Fledge

FLEDGE = [sys.executable, "-m", "fledge"]
GETVERSION, GETFLAGS = 0x80087601, 0x80086601
USER_VISIBLE = 0x725BDFFF
"""The flags of an inode that FS_IOC_GETFLAGS returns (EXT4_FL_USER_VISIBLE)."""

TYPES = {
    stat.S_IFDIR: "directory",
    stat.S_IFREG: "file",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
    stat.S_IFIFO: "fifo",
}


def initramfs(path: Path, **nodes: Node) -> Path:
    tree = Tree(mtime_ns=1_704_067_200 * 10**9)
    for name, node in nodes.items():
        tree.add(name.replace("__", "/").encode(), node)
    path.write_bytes(gzip.compress(b"".join(newc.write(tree))))
    return path


@pytest.fixture
def small(tmp_path: Path) -> Path:
    shared = File(mode=0o4755, uid=1000, gid=7, content=b"\x7f\x1b[2Jbytes\n\xff")
    return initramfs(
        tmp_path / "small.cpio.gz",
        bin__a=shared,
        bin__b=shared,
        link=Symlink(target=b"bin"),
        dangling=Symlink(target=b"nowhere\x1b[2J"),
        dev__console=CharDevice(mode=0o600, major=5, minor=1),
    )


def entries(text: str) -> dict[str, dict[str, Any]]:
    return {entry["path"]: entry for entry in json.loads(text)["entries"]}


def test_summary_of_an_initramfs(fledge: Fledge, tmp_path: Path) -> None:
    project.make(tmp_path)
    fledge("build")
    done = fledge("inspect", "plugin.cpio.gz")
    assert done.code == 0
    for line in (
        "kind         initramfs",
        "archive      gzip, at byte 0,",
        "init         /init, built-in, #!/bin/busybox sh",
        "agent        /bin/kestrel, #!/bin/busybox sh",
        "provenance   valid for these bytes",
    ):
        assert f"\n  {line}" in done.out
    with (tmp_path / "plugin.cpio.gz").open("ab") as file:
        file.write(bytes(4))
    assert "provenance   none for these bytes" in fledge("inspect", "plugin.cpio.gz").out


def test_summary_of_a_disk(fledge: Fledge, tmp_path: Path) -> None:
    project.make_rootfs(tmp_path)
    assert fledge("build", "-o", "disk.img").code == 0
    facts = json.loads(fledge("inspect", "--json", "disk.img", "/etc/fsify-entrypoint").out)
    assert facts["kind"] == "ext4"
    assert facts["size"] == (tmp_path / "disk.img").stat().st_size
    assert facts["image"].startswith("oci:")
    assert facts["agent"]["path"] == "/bin/kestrel"
    assert facts["has_provenance"]
    assert "metadata_csum" in facts["filesystem"]["features"]
    [entry] = facts["entries"]
    config = fledge("inspect", "disk.img", "/etc/fsify-entrypoint").out
    assert entry["sha256"] == hashlib.sha256(config.encode()).hexdigest()
    assert (entry["size"], entry["links"], entry["mode"]) == (len(config), 1, "0644")


def test_agent_version_comes_from_the_provenance(fledge: Fledge, tmp_path: Path) -> None:
    project.make(tmp_path)
    fledge("build")
    path = tmp_path / "plugin.cpio.gz.provenance.json"
    statement = json.loads(path.read_text())
    for item in statement["predicate"]["buildDefinition"]["resolvedDependencies"]:
        if item["name"] == "agent":
            item.setdefault("annotations", {})["version"] = "v1.2.3\x1b[2J"
    path.write_text(json.dumps(statement))
    assert (
        "agent        /bin/kestrel, v1.2.3\\x1b[2J, #!" in fledge("inspect", "plugin.cpio.gz").out
    )


def test_list(fledge: Fledge, small: Path) -> None:
    lines = fledge("inspect", "-l", small).out.splitlines()
    when = "2024-01-01 00:00:00"
    assert lines == [
        f"drwxr-xr-x   4     0     0          0 {when} /",
        f"drwxr-xr-x   2     0     0          0 {when} /bin",
        "-rwsr-xr-x   2  1000     7         12 1970-01-01 00:00:00 /bin/a",
        "-rwsr-xr-x   2  1000     7         12 1970-01-01 00:00:00 /bin/b",
        "lrwxrwxrwx   1     0     0         11 1970-01-01 00:00:00 /dangling -> nowhere\\x1b[2J",
        f"drwxr-xr-x   2     0     0          0 {when} /dev",
        "crw-------   1     0     0       5, 1 1970-01-01 00:00:00 /dev/console",
        "lrwxrwxrwx   1     0     0          3 1970-01-01 00:00:00 /link -> bin",
    ]


@pytest.mark.real
def test_sockets_and_headers_are_told(fledge: Fledge, tmp_path: Path) -> None:
    daemons.need("cpio")
    path = tmp_path / "theirs.cpio"
    with socket.socket(socket.AF_UNIX) as server:
        (tmp_path / "run").mkdir()
        server.bind(str(tmp_path / "run/s"))
    command = ["cpio", "-o", "-H", "newc", "--quiet"]
    done = subprocess.run(
        command, input=b"run\nrun/s\n", cwd=tmp_path, check=True, capture_output=True
    )
    path.write_bytes(done.stdout)
    for below in ("/", "run"):
        assert fledge("inspect", "-l", path, below).out.splitlines()[-1].split()[0] == "s?????????"
    found = entries(fledge("inspect", "--json", path).out)
    assert found["/run/s"] == {"path": "/run/s", "type": "socket"}
    status = (tmp_path / "run").stat()
    assert found["/run"]["nlink"] == status.st_nlink
    assert found["/run"]["devmajor"] == os.major(status.st_dev)
    assert found["/run"]["devminor"] == os.minor(status.st_dev)
    assert found["/"]["nlink"] is None


def test_folder(fledge: Fledge, small: Path) -> None:
    for path in ("/bin", "bin/", "link", "/dev/../link/."):
        lines = fledge("inspect", small, path).out.splitlines()
        assert [line[-21:] for line in lines] == [f"1970-01-01 00:00:00 {name}" for name in "ab"]
    assert fledge("inspect", "-l", small, "link").out.endswith("/link -> bin\n")
    assert fledge("inspect", small, "dangling").out.endswith("-> nowhere\\x1b[2J\n")
    assert fledge("inspect", small, "dev/console").out.startswith("crw-------")


@pytest.mark.slow
def test_content_is_the_bytes_of_the_file(small: Path) -> None:
    done = subprocess.run([*FLEDGE, "inspect", small, "/link/b"], capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"\x7f\x1b[2Jbytes\n\xff", b"")


@pytest.mark.slow
def test_content_on_a_terminal_cannot_command_it(small: Path) -> None:
    ours, theirs = pty.openpty()
    subprocess.run([*FLEDGE, "inspect", small, "bin/a"], stdout=theirs, check=True)
    os.close(theirs)
    assert os.read(ours, 1000) == b"\\x7f\\x1b[2Jbytes\r\n\\xff"
    os.close(ours)


@pytest.mark.slow
def test_output_that_nobody_reads_to_its_end(tmp_path: Path) -> None:
    big = initramfs(tmp_path / "big.cpio.gz", file=File(mode=0o644, content=bytes(4 << 20)))
    command = [*FLEDGE, "inspect", str(big), "file"]
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdout
        assert process.stderr
        assert process.stdout.read(10) == bytes(10)
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == -13
    assert list(temporary.iterdir()) == []


def test_json_of_names_that_are_not_utf8(fledge: Fledge, tmp_path: Path) -> None:
    tree = Tree(mtime_ns=0)
    tree.add(b"\xff\\", Symlink(target=b"\xfe"))
    tree.add("ü".encode(), Directory(mode=0o755))
    path = tmp_path / "names.cpio"
    path.write_bytes(b"".join(newc.write(tree)))
    found = json.loads(fledge("inspect", "--json", path).out)["entries"]
    assert found[1]["path"] == "/ü"
    assert "path_base64" not in found[1]
    assert found[2]["path"] == "/\ufffd\\"
    assert b64decode(found[2]["path_base64"]) == b"/\xff\\"
    assert b64decode(found[2]["target_base64"]) == b"\xfe"
    assert fledge("inspect", path, os.fsdecode(b"\xff\\")).out.endswith("\\xff\\ -> \\xfe\n")


def test_what_is_not_there(fledge: Fledge, small: Path) -> None:
    done = fledge("inspect", small, "/bin/c\x1b[2J")
    assert (done.code, done.out) == (2, "")
    assert "small.cpio.gz has no /bin/c\\x1b[2J" in done.err
    assert fledge("inspect", "absent").code == 2
    assert fledge("inspect", ".").code == 2
    assert fledge("inspect", "-l", "--json", small).code == 2


@pytest.mark.parametrize("data", [b"", b"text\n", bytes(100_000), b"XFSB" + bytes(5000)])
def test_what_is_no_artifact(fledge: Fledge, tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x").write_bytes(data)
    done = fledge("inspect", "x")
    assert (done.code, done.out) == (1 if data.startswith(b"XFSB") else 4, "")
    known = "x is not in a known format (initramfs, ext4, xfs, btrfs, erofs)"
    cannot_read = "x is an image of type xfs, which fledge cannot read"
    assert (cannot_read if data.startswith(b"XFSB") else known) in done.err


def test_damaged(fledge: Fledge, small: Path) -> None:
    small.write_bytes(small.read_bytes()[:-20])
    done = fledge("inspect", small)
    assert (done.code, done.out) == (4, "")
    assert "small.cpio.gz: the gzip data at byte 0" in done.err


def test_files_that_claim_any_size_cost_no_time(fledge: Fledge, tmp_path: Path) -> None:
    """So many zeros would take hours to hash, and come from 84 KiB."""
    tree = Tree(mtime_ns=0)
    empty = tmp_path / "empty"
    empty.touch()
    tree.add(b"sbin/init", File(mode=0o755, content=Sparse(10 << 40, empty, ())))
    tree.add(b"etc/small", File(mode=0o644, content=b"small"))
    image = tmp_path / "disk.img"
    image.touch()
    write_ext4(tree, image, Ext4(), 0)
    assert "/sbin/init, not a program, 10.0 TiB" in fledge("inspect", "disk.img").out
    found = entries(fledge("inspect", "--json", "disk.img").out)
    assert found["/sbin/init"]["sha256"] is None
    assert found["/etc/small"]["sha256"] == hashlib.sha256(b"small").hexdigest()


def fill(folder: Path) -> None:
    """Make one of every type that mke2fs copies from a folder."""
    (folder / "sub").mkdir(mode=0o2750)
    (folder / "sub/file").write_bytes(b"content\n" * 5000)
    (folder / "sub/linked").hardlink_to(folder / "sub/file")
    (folder / "empty").touch(mode=0o400)
    with (folder / "sparse").open("wb") as file:
        file.seek(1 << 20)
        file.write(b"end")
    (folder / "short").symlink_to("sub/file")
    (folder / "long").symlink_to("x" * 200)
    os.mkfifo(folder / "fifo", 0o640)
    os.mknod(folder / "disk", stat.S_IFBLK | 0o660, os.makedev(259, 70000))
    os.mknod(folder / "tty", stat.S_IFCHR | 0o600, os.makedev(5, 1))
    os.setxattr(folder / "empty", "user.name", b"\0value\xff")
    os.setxattr(folder / "sub", "trusted.big", b"v" * 700)
    os.chown(folder / "sub/file", 1000, 70000)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "socket"))
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff\xfe")).touch()
    for number in range(300):
        (folder / "sub" / f"a name that takes its place {number}").touch()
    for number, item in enumerate(sorted(folder.rglob("*"))):
        os.utime(item, ns=(10**9 * number, 10**9 * number + number), follow_symlinks=False)


def seen_by_kernel(folder: Path) -> dict[bytes, dict[str, Any]]:
    """Return every path in a mounted filesystem, as in ``fledge inspect --json``."""
    listed = subprocess.run(["find", folder, "-printf", "%P\\0"], capture_output=True, check=True)
    names = listed.stdout.split(b"\0")[:-1]
    paths = [os.fsencode(folder) + b"/" + name for name in names]
    # Creation times, which Python cannot read.
    command = ["xargs", "-0", "stat", "--printf", "%.9W\\n"]
    lines = subprocess.run(command, input=b"\0".join(paths), capture_output=True, check=True)
    births = lines.stdout.split()
    found: dict[bytes, dict[str, Any]] = {}
    for name, path, birth in zip(names, paths, births, strict=True):
        status = os.lstat(path)
        kind = stat.S_IFMT(status.st_mode)
        if kind == stat.S_IFSOCK:
            found[b"/" + name] = {"type": "socket"}
            continue
        fields: dict[str, Any] = {
            "type": TYPES[kind],
            "mode": f"{stat.S_IMODE(status.st_mode):04o}",
            "uid": status.st_uid,
            "gid": status.st_gid,
            "size": status.st_size,
            "links": status.st_nlink,
            "inode": status.st_ino,
            "blocks": status.st_blocks,
            "mtime_ns": status.st_mtime_ns,
            "atime_ns": status.st_atime_ns,
            "ctime_ns": status.st_ctime_ns,
            "crtime_ns": int(birth.replace(b".", b"")),
            "xattrs": {
                each: os.getxattr(path, each, follow_symlinks=False)
                for each in os.listxattr(path, follow_symlinks=False)
            },
        }
        if kind == stat.S_IFREG:
            with open(path, "rb") as file:  # noqa: PTH123 -- the path is bytes
                fields["sha256"] = hashlib.sha256(file.read()).hexdigest()
        elif kind == stat.S_IFLNK:
            fields["target"] = os.readlink(path)
        elif kind in (stat.S_IFBLK, stat.S_IFCHR):
            fields["major"] = os.major(status.st_rdev)
            fields["minor"] = os.minor(status.st_rdev)
        if kind in (stat.S_IFREG, stat.S_IFDIR):
            descriptor = os.open(path, os.O_RDONLY)
            fields["generation"] = _asked(descriptor, GETVERSION)
            fields["flags"] = _asked(descriptor, GETFLAGS)
            os.close(descriptor)
        found[b"/" + name] = fields
    return found


def _asked(descriptor: int, request: int) -> int:
    answer = ioctl(descriptor, request, bytes(8))
    number: int = struct.unpack("<I", answer[:4])[0]
    return number


def told(text: str) -> dict[bytes, dict[str, Any]]:
    """Return the entries of the JSON in the form of `seen_by_kernel`."""
    found: dict[bytes, dict[str, Any]] = {}
    for entry in json.loads(text)["entries"]:
        path, target = (_exact(entry, key) for key in ("path", "target"))
        assert path is not None
        if target is not None:
            entry["target"] = target
        if "xattrs" in entry:
            entry["xattrs"] = {
                item["name"]: b64decode(item["value_base64"]) for item in entry["xattrs"]
            }
        if entry["type"] in ("file", "directory"):
            entry["flags"] &= USER_VISIBLE
        else:
            entry.pop("flags", None)
            entry.pop("generation", None)
        found[path] = entry
    return found


def _exact(entry: dict[str, Any], key: str) -> bytes | None:
    text, exact = entry.pop(key, None), entry.pop(f"{key}_base64", None)
    if exact is not None:
        return b64decode(exact)
    return None if text is None else str(text).encode()


@pytest.mark.real
@pytest.mark.parametrize("kind", ["ext2", "ext3", "ext4", "ext4 -O inline_data -b 1024"])
def test_json_is_what_the_kernel_sees(fledge: Fledge, tmp_path: Path, kind: str) -> None:
    if os.geteuid() != 0 or not shutil.which("mke2fs"):
        pytest.skip("takes root and e2fsprogs")
    folder = tmp_path / "folder"
    folder.mkdir()
    fill(folder)
    check(fledge, folder, tmp_path / "image", f"-t {kind}", "32M")


@pytest.mark.real
def test_json_of_a_debian_image(
    fledge: Fledge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid() != 0 or not shutil.which("umoci") or not shutil.which("debootstrap"):
        pytest.skip("takes root, debootstrap and umoci: run scripts/test-tools")
    checkout = Path(__file__).parents[2]
    layout = checkout / ".cache/debian"
    monkeypatch.delenv("DOCKER_CONFIG")  # buildah refuses one that does not exist
    subprocess.run([checkout / "scripts/debian-image", layout], check=True)
    bundle = tmp_path / "bundle"
    command: list[str | Path] = ["umoci", "unpack", "--image", f"{layout}:debian", bundle]
    subprocess.run(command, check=True, capture_output=True)
    check(fledge, bundle / "rootfs", tmp_path / "image", "-t ext4", "1G")


def check(fledge: Fledge, folder: Path, image: Path, options: str, size: str) -> None:
    """Make an image of the folder, and compare fledge's view with the kernel's."""
    command: list[str | Path] = ["mke2fs", "-q", *options.split(), "-d", folder, image, size]
    subprocess.run(command, check=True)
    done = fledge("inspect", "--json", image)
    assert done.code == 0
    with mounted(image) as mount:
        seen = seen_by_kernel(mount)
        free = os.statvfs(mount)
    found = told(done.out)
    assert found.keys() == seen.keys()
    for path, fields in seen.items():
        assert found[path] == fields, path
    facts = json.loads(done.out)["filesystem"]
    assert facts["block_size"] == free.f_bsize
    assert (facts["free_blocks"], facts["free_inodes"]) == (free.f_bfree, free.f_ffree)
