"""A real kernel boots artifacts, with Debian's busybox and substitutes for the agent."""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fledge.cpio import newc
from fledge.operations import build
from fledge.tree import Symlink, Tree
from tests.support import images, project, tars, vm

pytestmark = pytest.mark.real

REPORT = b"""#!/bin/busybox sh
echo "reached $0 as process $$"
while read -r device folder type options; do echo "mounted $type on $folder"; done </proc/mounts
for file in /init /bin/kestrel /usr/bin/tool /etc/app/app.conf /srv /srv/data /srv/link /tmp; do
    stat -c "found %n %a %u:%g %F" "$file" 2>&1
done
[ ! -f /srv/large ] || echo "srv/large is $(sha256sum /srv/large)"
echo "tool says $(/usr/bin/tool)"
echo "console $(test -t 0 && tty)"
poweroff -f
"""

MAPPINGS = """
[mappings]
"tool" = "/usr/bin/"
"app.conf" = "/etc/app/app.conf"
"srv" = "/srv"
"""

FOUND = """\
found /usr/bin/tool 755 0:0 regular file
found /etc/app/app.conf 644 0:0 regular file
found /srv 755 0:0 directory
found /srv/data 644 0:0 regular file
found /srv/link 777 0:0 symbolic link
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    project.write(tmp_path, "report", REPORT, executable=True)
    project.write(tmp_path, "tool", b"#!/bin/sh\ncat /etc/app/app.conf /srv/link\n")
    project.write(tmp_path, "app.conf", b"mapped ")
    project.write(tmp_path, "srv/data", b"files\n")
    (tmp_path / "srv/link").symlink_to("data")
    return tmp_path


def busybox_program() -> bytes:
    busybox = Path(shutil.which("busybox") or "")
    if not busybox.is_file():
        pytest.skip("no busybox: run scripts/test-tools")
    return busybox.read_bytes()


def boot(folder: Path, *tables: str, memory: str = "2G") -> str:
    toml = project.make(folder, *tables, files={}, busybox_binary=busybox_program())
    artifact = build.build(toml, folder / "plugin.cpio.gz")
    return vm.boot(artifact.path, memory=memory)


def test_built_in_init_starts_the_agent(folder: Path) -> None:
    agent = '[agent]\nsource_strategy = "local"\npath = "report"\n'
    console = boot(folder, agent, MAPPINGS)
    assert "reached /bin/kestrel as process 1\n" in console
    for mount in (
        *("devtmpfs on /dev", "proc on /proc", "sysfs on /sys", "tmpfs on /tmp", "tmpfs on /run"),
        *("devpts on /dev/pts", "tmpfs on /dev/shm"),
    ):
        assert f"mounted {mount}\n" in console
    assert FOUND in console
    assert "found /init 755 0:0 regular file\n" in console
    assert "found /bin/kestrel 755 0:0 regular file\n" in console
    assert "found /tmp 1777 0:0 directory\n" in console
    assert "tool says mapped files\n" in console
    assert "console /dev/console\n" in console
    assert "Power down" in console


@pytest.mark.parametrize(
    "archive",
    ['"gzip"\nlevel = 12', '"zstd"', '"zstd"\nlevel = 19', '"lz4"', '"lz4"\nlevel = 1', '"none"'],
)
def test_every_compression_boots(archive: str, folder: Path) -> None:
    # More than the window of zstd, and than a block of LZ4.
    project.write(folder, "srv/large", hashlib.shake_128(b"noise").digest(6 << 20) * 3)
    agent = '[agent]\nsource_strategy = "local"\npath = "report"\n'
    console = boot(folder, agent, MAPPINGS, f"[archive]\ncompression = {archive}\n")
    assert FOUND in console
    assert (
        f"srv/large is {hashlib.sha256((folder / 'srv/large').read_bytes()).hexdigest()}" in console
    )
    assert "Power down" in console


def test_init_of_the_user(folder: Path) -> None:
    mount = b"mount -t proc proc /proc\n"
    project.write(folder, "report", REPORT.replace(b"sh\n", b"sh\n" + mount, 1))
    console = boot(folder, '[init]\npath = "report"\n', MAPPINGS)
    assert "reached /init as process 1\n" in console
    assert FOUND in console
    assert "can't stat '/bin/kestrel'" in console
    assert "Power down" in console


def test_init_that_is_mapped(folder: Path) -> None:
    mount = b"mount -t proc proc /proc\n"
    path = project.write(folder, "report", REPORT.replace(b"sh\n", b"sh\n" + mount, 1))
    path.chmod(0o755)
    console = boot(folder, "[init]\nnone = true\n", MAPPINGS, '"report" = "/init"\n')
    assert "reached /init as process 1\n" in console
    assert FOUND in console
    assert "Power down" in console


def test_an_archive_that_does_not_fit_into_memory(folder: Path) -> None:
    """What is missing are files, not the places where init mounts filesystems."""
    (folder / "large").touch()
    os.truncate(folder / "large", 400 << 20)
    agent = '[agent]\nsource_strategy = "local"\npath = "report"\n'
    console = boot(folder, agent, MAPPINGS, '"large" = "/lib/large"\n', memory="512M")
    cut = "fledge: the archive does not fit into memory and was cut short; give the machine more\n"
    assert cut in console
    assert "reached /bin/kestrel as process 1\n" in console
    for mount in ("devtmpfs on /dev", "proc on /proc", "sysfs on /sys", "tmpfs on /tmp"):
        assert f"mounted {mount}\n" in console
    assert "can't stat '/srv/data'" in console


def test_agent_that_cannot_start(folder: Path) -> None:
    project.write(folder, "broken", b"#!/bin/no-such-interpreter\n")
    console = boot(folder, '[agent]\nsource_strategy = "local"\npath = "broken"\n')
    assert "/bin/kestrel: not found" in console
    assert "fledge: /bin/kestrel did not start, powering off" in console
    assert "Power down" in console
    assert "panic" not in console


USR_MERGED = (
    tars.folder("usr/bin"),
    tars.folder("usr/sbin"),
    tars.symlink("bin", "usr/bin"),
    tars.symlink("sbin", "/usr/sbin"),
    tars.file("usr/bin/app", b"#!/bin/sh\necho app runs\n", mode=0o755),
)

BAKED = ("bin/sh", "bin/busybox", "sbin/poweroff", "init")
"""Symlinks in the archive of Volant's kernel: directories, where many images have symlinks."""

WELL = b"""#!/bin/sh
readlink /bin; readlink /sbin
/bin/app
ping -c 1 127.0.0.1 | grep received
exec /bin/poweroff -f
"""


def baked_archive() -> bytes:
    tree = Tree(mtime_ns=0)
    for path in BAKED:
        tree.add(path.encode(), Symlink(target=b"/tmp/initramfs/bin/busybox"))
    return gzip.compress(b"".join(newc.write(tree)))


def test_symlinks_where_the_kernel_has_directories(folder: Path) -> None:
    images.write_layout(folder / "layout", images.image(tars.pack(*USR_MERGED)), "latest")
    project.write(folder, "report", WELL, executable=True)
    binary = busybox_program()
    url = project.write(folder, "busybox", binary).as_uri()
    toml = project.make(
        folder,
        project.source(url, binary) + 'image = "oci:layout:latest"\n',
        '[agent]\nsource_strategy = "local"\npath = "report"\n',
        files={},
        busybox_binary=binary,
    )
    plugin = build.build(toml, folder / "plugin.cpio.gz", platform="linux/amd64").path
    over_baked = folder / "both.cpio.gz"
    over_baked.write_bytes(baked_archive() + plugin.read_bytes())
    for archive in (plugin, over_baked):
        console = vm.boot(archive)
        assert "usr/bin\n/usr/sbin\napp runs\n" in console
        assert "1 packets received" in console
        assert "Power down" in console


def test_the_examples_can_run(tmp_path: Path) -> None:
    """The first command of README.md says nothing that alarms a newcomer."""
    checkout = Path(__file__).parents[2]
    for name in ("fixtures", "scripts"):
        shutil.copytree(checkout / name, tmp_path / name)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    done = subprocess.run([tmp_path / "scripts/hello"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["build/hello/plugin.cpio.gz", "build/hello.img"]
    shown = [line for line in done.stderr.splitlines() if line.startswith("    ")]
    assert shown == []  # no note
