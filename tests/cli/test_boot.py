"""The command fledge boot: how it ends, what it leaves, and what it prints instead of booting."""

from __future__ import annotations

import gzip
import hashlib
import itertools
import json
import os
import pty
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from fledge.cpio import newc
from fledge.ext4.format import Ext4
from fledge.oci.manifest import host_platform
from fledge.operations import build
from fledge.sources.init import install
from fledge.tree import File, Tree
from tests.support import disks, project, vm
from tests.support.httpd import Server, content
from tests.support.kernel_images import arm64_image, bzimage
from tests.support.plugin_manifest import decode
from tests.support.project import Fledge

SHELL = b"""#!/bin/busybox sh
busybox mount -t devtmpfs devtmpfs /dev
echo "the guest is up"
while read -r line; do echo "guest read <$line>"; done
"""


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    """A file that looks like a kernel for amd64."""
    return project.write(tmp_path, "bzImage", bzimage(b"", release="6.1.0-test"))


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    tree = Tree(mtime_ns=0)
    busybox = shutil.which("busybox")
    program = Path(busybox).read_bytes() if busybox else project.busybox()
    install(tree, SHELL)
    tree.add(b"bin/busybox", File(mode=0o755, content=program))
    path = tmp_path / "plugin.cpio.gz"
    path.write_bytes(gzip.compress(b"".join(newc.write(tree)), 1))
    return path


def emulators(marker: str) -> list[int]:
    """Return the processes of QEMU whose command line has the marker."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes()
        except OSError:
            continue
        if words.startswith(b"/usr/bin/qemu-system") and marker.encode() in words:
            found.append(int(path.parent.name))
    return found


class Terminal:
    """fledge boot on a terminal."""

    def __init__(self, process: subprocess.Popen[bytes], parent: int) -> None:
        self.process = process
        self._parent = parent
        self.text = ""

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + 200
        while text not in self.text:
            assert time.monotonic() < deadline, self.text
            assert self._read(), self.text

    def end(self) -> int:
        while self._read():
            pass
        return self.process.wait(60)

    def press(self, keys: bytes) -> None:
        os.write(self._parent, keys)

    def settings(self) -> list[object]:
        return termios.tcgetattr(self._parent)

    def _read(self) -> bool:
        if not select.select([self._parent], [], [], 1)[0]:
            return self.process.poll() is None
        try:
            data = os.read(self._parent, 1 << 16)
        except OSError:  # EIO: the program has ended
            return False
        self.text += data.decode(errors="replace")
        return True


@contextmanager
def terminal(*arguments: str | Path, temporary: Path) -> Iterator[Terminal]:
    parent, child = pty.openpty()
    process = subprocess.Popen(
        ["setsid", "--ctty", sys.executable, "-m", "fledge", "boot", *arguments],
        stdin=child,
        stdout=child,
        stderr=child,
        env={**os.environ, "TERM": "dumb", "TMPDIR": str(temporary)},
    )
    try:
        yield Terminal(process, parent)
    finally:
        process.kill()
        process.wait()
        os.close(child)
        os.close(parent)


@pytest.mark.real
def test_a_session_on_a_terminal(plugin: Path, tmp_path: Path) -> None:
    """The guest reads what is typed. Ctrl-A Ctrl-A is a Ctrl-A, Ctrl-A X ends it."""
    marker = f"fledge.test={tmp_path}"
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    before = plugin.read_bytes()
    arguments = (plugin, "--kernel", vm.kernel(), "--append", marker)
    with terminal(*arguments, temporary=temporary) as seen:
        settings = seen.settings()
        seen.wait_for("the guest is up")
        assert emulators(marker)
        assert seen.settings() != settings
        seen.press(b"hel\x01lo\x01\x01\r")
        seen.wait_for("guest read <hel\x01lo\x01>")
        seen.press(b"\x01x")
        assert seen.end() == 0
        assert seen.settings() == settings
    assert emulators(marker) == []
    assert list(temporary.iterdir()) == []
    assert plugin.read_bytes() == before


@pytest.mark.real
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_an_interrupt_leaves_nothing(number: signal.Signals, plugin: Path, tmp_path: Path) -> None:
    marker = f"fledge.test={tmp_path}"
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    arguments = (plugin, "--kernel", vm.kernel(), "--append", marker, "--expect", "never")
    with terminal(*arguments, temporary=temporary) as seen:
        settings = seen.settings()
        deadline = time.monotonic() + 60
        while not emulators(marker):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        if number == signal.SIGINT:
            seen.press(b"\x03")
        else:
            seen.process.send_signal(number)
        assert seen.end() == -number
        if number != signal.SIGKILL:
            assert seen.settings() == settings
            assert "interrupted; the guest was ended, and nothing of it is left" in " ".join(
                seen.text.split()
            )
            assert emulators(marker) == []
    while emulators(marker):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert list(temporary.iterdir()) == []


@pytest.mark.real
def test_a_port_that_is_in_use(
    plugin: Path, tmp_path: Path, fledge: Fledge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its server answers before QEMU, which is slow to start, finds it in use."""
    architecture = {"amd64": "x86_64", "arm64": "aarch64"}[host_platform().architecture]
    name = f"qemu-system-{architecture}"
    slow = f'#!/bin/sh\nsleep 2\nexec {shutil.which(name)} "$@"\n'
    project.write(tmp_path, f"bin/{name}", slow.encode(), executable=True)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    with Server() as server:
        server.answers["/"] = content(b"not the guest")
        port = urlsplit(server.url("/")).port
        done = fledge(
            *("boot", plugin, "--kernel", vm.kernel()),
            *("-p", f"{port}:80", "--probe", server.url("/"), "--timeout", "60"),
        )
    assert done.code == 1
    assert "error: QEMU failed: " in done.err
    assert f"Port {port} is in use, or not yours to use: publish another." in done.err


def test_the_command_for_qemu(plugin: Path, kernel: Path, fledge: Fledge) -> None:
    arguments = ("--kernel", kernel, "--append", "one two", "--memory", "1GiB", "--cpus", "3")
    done = fledge("boot", plugin, *arguments, "--print-command", "qemu")
    assert done.code == 0
    words = shlex.split(done.out)
    options = dict(itertools.pairwise(words))
    assert words[0] == "qemu-system-x86_64"
    assert options["-kernel"] == str(kernel)
    assert options["-initrd"] == str(plugin)  # without modules nothing is laid under it
    assert (options["-m"], options["-smp"]) == ("1024M", "3")
    line = options["-append"]
    assert line.startswith("console=ttyS0 reboot=k panic=1 quiet loglevel=1 ")
    assert line.endswith(" one two")
    assert "ip=" not in line
    assert "-netdev" not in words


def test_a_network_is_set_up_in_the_guest(plugin: Path, kernel: Path, fledge: Fledge) -> None:
    done = fledge("boot", plugin, "--kernel", kernel, "-p", "8080:80", "--print-command", "qemu")
    words = shlex.split(done.out)
    options = dict(itertools.pairwise(words))
    assert options["-netdev"] == "user,id=network,restrict=on,hostfwd=tcp:127.0.0.1:8080-:80"
    assert "ip=10.0.2.15::10.0.2.2:255.255.255.0:fledge:eth0:off" in options["-append"]
    archive = Path(options["-initrd"]).read_bytes()  # kept in the cache
    assert archive.endswith(plugin.read_bytes())
    assert b"ifconfig eth0 10.0.2.15 netmask 255.255.255.0 up" in archive


@pytest.mark.slow
def test_other_hypervisors(kernel: Path, tmp_path: Path, fledge: Fledge) -> None:
    toml = project.make_rootfs(tmp_path)
    project.write(tmp_path, "kestrel", project.program())
    toml.write_text(
        toml.read_text() + '[manifest]\nname = "a"\nversion = "1"\n'
        "[manifest.resources]\ncpu_cores = 2\nmemory_mb = 300\n[manifest.workload]\n"
        'entrypoint = ["/bin/kestrel"]\nbase_url = "http://127.0.0.1:80"\n'
    )
    assert fledge("build", "-o", "a, b.img", "--platform", "linux/amd64").code == 0
    arguments = ("boot", "a, b.img", "--kernel", kernel, "--print-command")
    done = fledge(*arguments, "cloud-hypervisor")
    words = shlex.split(done.out)
    assert words[0] == "cloud-hypervisor"
    assert f'path="{tmp_path}/a, b.img",image_type=raw' in words
    assert {"boot=2", "size=300M"} <= set(words)
    assert "give each machine a copy" in done.err
    done = fledge(*arguments, "firecracker")
    config = json.loads(done.out)
    line = config["boot-source"]["boot_args"]
    assert "volant.rootfs_device=vda volant.rootfs_fstype=ext4 volant.manifest=H4sI" in line
    assert line.endswith(" loglevel=5 rdinit=/dev/.fledge/init")
    assert config["drives"][0]["path_on_host"] == f"{tmp_path}/a, b.img"
    assert config["machine-config"] == {"vcpu_count": 2, "mem_size_mib": 300}
    assert "firecracker needs a vmlinux" in done.err
    done = fledge(*arguments, "qemu")
    assert f"format=raw,snapshot=on,file={tmp_path}/a,, b.img" in shlex.split(done.out)[-3]


@pytest.mark.real
def test_the_printed_command_boots(tmp_path: Path) -> None:
    """Whatever the name of the disk."""
    busybox = shutil.which("busybox")
    if busybox is None:
        pytest.skip("no busybox: run scripts/test-tools")
    toml = project.make_rootfs(tmp_path)
    project.write(tmp_path, "busybox", Path(busybox).read_bytes())
    toml.write_text(toml.read_text() + '"busybox" = "/bin/busybox"\n')
    disk = tmp_path / os.fsdecode(b"a,b' \xff=.img")
    build.build(toml, disk, platform=str(host_platform()))
    command = [sys.executable, "-m", "fledge", "boot", str(disk), "--kernel", str(vm.kernel())]
    printed = subprocess.check_output([*command, "--print-command", "qemu"])
    console = subprocess.check_output([b"sh", b"-c", printed], stdin=subprocess.DEVNULL)
    assert re.search(rb"^agent\r$", console, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--print-command", "bochs"), 2, "bochs is not a known hypervisor"),
        (("--print-command", "firecracker", "-p", "1:1"), 2, "cannot publish ports"),
        (("-p", "80"), 2, "'80' does not say which port to publish"),
        (("-p", "0:70000"), 2, "'0:70000' does not say"),
        (("--expect", "("), 2, "'(' is not a regular expression"),
        (("--expect", ""), 2, "'' matches an empty line, so that every guest would pass"),
        (("--expect", "ok", "--expect", ".*"), 2, "'.*' matches an empty line"),
        (("--probe", "ftp://127.0.0.1/"), 2, "is not a URL that can be probed"),
        (("--probe", "https://127.0.0.1:8080/"), 2, "fledge speaks http to a guest, and not TLS"),
        (("--probe", "http://127.0.0.1:8080/"), 2, "no port of the guest is published as 8080"),
        (("--probe", "http://example.org/"), 2, "http://example.org/ is not in the guest"),
        (("--append", "x" * 2000), 2, "the kernel's command line is"),
        (("--append", "a\nb"), 2, "is one line"),
        (("--memory", "much"), 2, "is not a size"),
        (("--memory", "512KiB"), 2, "512KiB is less than 1MiB of memory"),
        (("--expect", "x", "--timeout", "nan"), 2, "a timeout of nan is no time to wait"),
        (("--manifest", "gone.json"), 2, "gone.json could not be read"),
        (("--manifest", "bzImage"), 2, "bzImage is not a plugin manifest"),
        (("--manifest", "surrogate.json"), 2, "surrogate.json is not a plugin manifest"),
        (("--manifest", "spaced.json"), 2, "is not a plugin manifest: name: must begin with a"),
        (("--manifest", "fifo"), 2, "fifo could not be read: it is a fifo"),
        (("--kernel", "fifo"), 2, "fifo could not be read: it is a fifo"),
        (("--kernel", "gone"), 2, "gone could not be read"),
        (("--kernel", "plugin.cpio.gz"), 2, "plugin.cpio.gz is not a kernel image"),
        (("--kernel", "bzImage-386"), 2, "is a kernel for 386, which fledge cannot boot"),
    ],
)
def test_what_is_refused(
    arguments: tuple[str, ...], code: int, message: str, plugin: Path, kernel: Path, fledge: Fledge
) -> None:
    project.write(plugin.parent, "bzImage-386", bzimage(b"", release="6.1.0", loads_64_bit=False))
    surrogate = """{
        "name": "\\ud800", "version": "1", "runtime": "a",
        "resources": {"cpu_cores": 1, "memory_mb": 1},
        "workload": {"type": "http", "base_url": "http://a", "entrypoint": ["/a"]},
        "initramfs": {"url": "/a", "checksum": "sha256:%s"}
    }"""
    digest = hashlib.sha256(plugin.read_bytes()).hexdigest()
    project.write(plugin.parent, "surrogate.json", (surrogate % digest).encode())
    spaced = (surrogate % digest).replace("\\ud800", "my app")
    project.write(plugin.parent, "spaced.json", spaced.encode())
    os.mkfifo(plugin.parent / "fifo")
    given = arguments if "--kernel" in arguments else ("--kernel", str(kernel), *arguments)
    done = fledge("boot", plugin.name, *given)
    assert (done.code, done.out) == (code, "")
    assert message in done.err


def test_a_manifest_of_another_artifact(
    plugin: Path, kernel: Path, tmp_path: Path, fledge: Fledge
) -> None:
    toml = project.make(tmp_path)
    toml.write_text(
        toml.read_text() + '[manifest]\nname = "a"\nversion = "1"\n'
        '[manifest.workload]\nentrypoint = ["/bin/kestrel"]\nbase_url = "http://127.0.0.1:80"\n'
    )
    assert fledge("build", "-o", "other.cpio.gz").code == 0
    own = tmp_path / "plugin.cpio.gz.manifest.json"
    shutil.copy(tmp_path / "other.cpio.gz.manifest.json", own)
    done = fledge("boot", plugin, "--kernel", kernel)
    assert done.code == 4
    assert f"but {own.name} says sha256:" in done.err.replace(f"{tmp_path}/", "")
    assert f"Remove {own}, or build the artifact with [manifest]" in " ".join(done.err.split())
    done = fledge("boot", plugin, "--kernel", kernel, "-m", "other.cpio.gz.manifest.json")
    assert done.code == 4
    assert "Name the manifest of this artifact with -m." in done.err


def test_manifests_of_two_artifacts_in_one_folder(
    kernel: Path, tmp_path: Path, fledge: Fledge
) -> None:
    text = project.make(tmp_path).read_text() + (
        '[manifest]\nversion = "1"\n[manifest.workload]\n'
        'entrypoint = ["/bin/kestrel"]\nbase_url = "http://127.0.0.1:80"\n'
    )
    for compression in ("gzip", "zstd"):
        archive = f'[archive]\ncompression = "{compression}"\n'
        project.write(tmp_path, "fledge.toml", (text + archive).encode())
        assert fledge("build").code == 0
    for name in ("plugin.cpio.gz", "plugin.cpio.zst"):
        done = fledge("boot", name, "--kernel", kernel, "--print-command", "qemu")
        assert done.code == 0, done.err
        assert "volant.plugin=plugin " in done.out


def test_a_manifest_of_somebody_else(plugin: Path, kernel: Path, fledge: Fledge) -> None:
    """What Volant takes, and what it writes itself."""
    digest = hashlib.sha256(plugin.read_bytes()).hexdigest()
    manifest: dict[str, object] = {
        "$schema": "https://example.org/plugin-manifest-v1.json",
        "schema_version": "v1",
        "name": "theirs",
        "version": "1",
        "runtime": "theirs",
        "resources": {"cpu_cores": 3, "memory_mb": 300},
        "workload": {"type": "http", "base_url": "http://127.0.0.1", "entrypoint": ["/a"]},
        "rootfs": {"url": ""},
        "health_check": {"endpoint": "", "timeout_ms": 0},
    }
    arguments = ("boot", plugin, "--kernel", kernel, "-m", "their.json", "--print-command", "qemu")
    for checksum in (f"sha256:{digest}", digest.upper(), "", None):
        place = {"url": "/a"} if checksum is None else {"url": "/a", "checksum": checksum}
        document = manifest | {"initramfs": place}
        project.write(plugin.parent, "their.json", json.dumps(document).encode())
        done = fledge(*arguments)
        assert done.code == 0, done.err
        options = dict(itertools.pairwise(shlex.split(done.out)))
        assert options["-smp"] == "3"
        given = decode(options["-append"])
        assert given["name"] == "theirs"
        assert "$schema" not in given
        assert ("their.json has no checksum, so it may be" in done.err) == (not checksum)
    document = manifest | {"initramfs": {"url": "/a", "checksum": "0" * 64}}
    project.write(plugin.parent, "their.json", json.dumps(document).encode())
    assert fledge(*arguments).code == 4


@pytest.mark.slow
def test_a_manifest_of_another_kind(
    plugin: Path, kernel: Path, tmp_path: Path, fledge: Fledge
) -> None:
    disk = tmp_path / "x.img"
    disks.write(Tree(mtime_ns=0), disk, Ext4())
    manifest = {
        "name": "a",
        "version": "1",
        "resources": {"cpu_cores": 1, "memory_mb": 100},
        "workload": {"type": "http", "base_url": "http://127.0.0.1", "entrypoint": ["/a"]},
    }
    qcow2 = {"rootfs": {"url": "/a", "format": "qcow2"}}
    raw: dict[str, object] = {"rootfs": {"url": "/a"}}
    initramfs = {"initramfs": {"url": "/a"}}
    for artifact, place, said in (
        (plugin, qcow2, f"of a disk in format qcow2, but {plugin} is an initramfs"),
        (plugin, raw, f"of a disk in format raw, but {plugin} is an initramfs"),
        (disk, qcow2, f"of a disk in format qcow2, but {disk} is a disk in format raw"),
        (disk, initramfs, f"of an initramfs, but {disk} is a disk in format raw"),
        (disk, raw, ""),
        (plugin, initramfs, ""),
        (plugin, initramfs | {"enabled": True}, ""),
    ):
        project.write(tmp_path, "m.json", json.dumps(manifest | place).encode())
        done = fledge(
            *("boot", artifact, "--kernel", kernel, "-m", "m.json", "--print-command", "qemu")
        )
        text = " ".join(done.err.split())
        assert said in text
        assert done.code == (2 if said else 0), done.err
        disabled = "m.json does not say enabled: true, so Volant makes no VM of it"
        assert (disabled in text) == (not said and "enabled" not in place)


def test_where_the_kernel_comes_from(
    plugin: Path, kernel: Path, tmp_path: Path, fledge: Fledge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--kernel, FLEDGE_KERNEL, and [target] kernel if it can be booted."""

    def used(*arguments: str | Path) -> str:
        words = shlex.split(fledge("boot", plugin, *arguments, "--print-command", "qemu").out)
        return Path(words[words.index("-kernel") + 1]).name

    other = project.write(tmp_path, "other", kernel.read_bytes())
    third = project.write(tmp_path, "third", kernel.read_bytes())
    project.make(tmp_path, project.LOCAL_AGENT, '[target]\nkernel = "bzImage"\n')
    assert used() == "bzImage"
    monkeypatch.setenv("FLEDGE_KERNEL", str(other))
    assert used() == "other"
    assert used("--kernel", third) == "third"


def test_a_disk_needs_a_static_busybox(
    kernel: Path, tmp_path: Path, fledge: Fledge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one of this machine, or the default one, which is for amd64 and may be in the cache."""
    project.make_rootfs(tmp_path)
    assert fledge("build", "-o", "x.img", "--platform", "linux/amd64").code == 0
    other = project.write(tmp_path, "Image", arm64_image(b"x" * 1000))
    command = ("boot", "x.img", "--print-command", "qemu", "--offline", "--kernel")
    monkeypatch.setenv("PATH", str(tmp_path))
    done = fledge(*command, kernel)
    assert done.code == 3
    assert "busybox" in done.err
    done = fledge(*command, other)
    assert done.code == 5
    assert "there is no static busybox for arm64" in done.err
    assert "neither /bin/busybox in x.img nor a program busybox on this machine is one" in done.err
    assert "Put a static busybox for arm64 at /bin/busybox with [mappings]" in done.err
    dynamic = project.write(tmp_path, "busybox", b"#!/bin/sh\n", executable=True)
    assert fledge(*command, kernel).code == 3
    dynamic.write_bytes(project.busybox())
    done = fledge(*command, kernel)
    assert done.code == 0
    assert "rdinit=/dev/.fledge/init" in done.out


def test_a_machine_without_qemu(
    plugin: Path, kernel: Path, fledge: Fledge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(plugin.parent))
    done = fledge("boot", plugin, "--kernel", kernel, "--expect", "x")
    assert done.code == 5
    assert "qemu-system-x86_64 is not installed" in done.err
    assert "apt install qemu-system-x86" in done.err


def test_a_disk_may_have_the_busybox(
    kernel: Path, tmp_path: Path, fledge: Fledge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here as an image with a busybox for arm64 has it, on a machine that has none for arm64."""
    toml = project.make_rootfs(tmp_path)
    own = project.busybox(b"mount", b"switch_root", b"x" * 40, machine=183)
    project.write(tmp_path, "own", own)
    toml.write_text(toml.read_text() + '"own" = "/bin/busybox"\n')
    assert fledge("build", "-o", "x.img", "--platform", "linux/arm64").code == 0
    other = project.write(tmp_path, "Image", arm64_image(b"x" * 1000))
    project.write(tmp_path, "busybox", project.busybox(), executable=True)
    monkeypatch.setenv("PATH", str(tmp_path))
    command = ("boot", "x.img", "--print-command", "qemu", "--offline", "--kernel")

    def archive(kernel: Path) -> bytes:
        words = shlex.split(fledge(*command, kernel).out)
        return Path(words[words.index("-initrd") + 1]).read_bytes()

    assert own in archive(other)
    assert own not in archive(kernel)
