"""fledge boot with real kernels and QEMU: what passes, what does not, and why guests die."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

import fledge as library
from fledge.errors import ExpectationError, FledgeError
from fledge.operations.boot import Machine
from tests.support import images, project, tars, vm
from tests.support.agents import AGENT
from tests.support.guests import MANIFEST, debian_files, free_port, host_busybox, initramfs, run
from tests.support.project import Fledge

REPO = Path(__file__).parents[2]


@pytest.mark.real
def test_an_initramfs_over_the_baked_archive_serves(tmp_path: Path) -> None:
    images.write_layout(tmp_path / "layout", images.image(tars.pack(*debian_files())), "latest")
    project.write(tmp_path, "kestrel", AGENT)
    binary = host_busybox()
    url = project.write(tmp_path, "busybox", binary).as_uri()
    toml = project.make(
        tmp_path,
        project.source(url, binary) + 'image = "oci:layout:latest"\n',
        project.LOCAL_AGENT,
        MANIFEST + 'entrypoint = ["serve"]\n',
        files={},
        busybox_binary=binary,
    )
    artifact = library.build(toml, tmp_path / "plugin.cpio.gz").path
    port = free_port()
    console = run(
        artifact,
        machine=Machine(
            kernel=vm.kernel(), volant=True, publish=[f"{port}:80"], append="user.parameter=1"
        ),
        expect=["^agent: the workload answers at http://127.0.0.1:80/"],
        probe=f"http://127.0.0.1:{port}/",
    )
    assert "agent: starts /usr/bin/serve\n" in console
    assert "serve runs with usr/bin\n" in console
    assert "panic" not in console


@pytest.mark.real
def test_a_disk_serves(tmp_path: Path) -> None:
    layout = REPO / ".cache" / "debian"
    if os.geteuid() != 0 and not layout.exists():
        pytest.skip("only root can make the Debian image")
    subprocess.run([REPO / "scripts/debian-image", layout], check=True)
    project.write(tmp_path, "kestrel", AGENT)
    project.write(tmp_path, "busybox", host_busybox())
    conf = 'events {} http { server { listen 80; location / { return 200 "nginx\\n"; } } }\n'
    project.write(tmp_path, "nginx.conf", conf.encode())
    text = f"""
        version = "1"
        strategy = "oci_rootfs"
        [source]
        image = "oci:{layout}:debian"
        [filesystem]
        size_buffer_mb = 16
        {project.LOCAL_AGENT}
        [mappings]
        "busybox" = "/bin/busybox"
        "nginx.conf" = "/etc/nginx/nginx.conf"
        {MANIFEST}
        entrypoint = ["nginx", "-g", "daemon off;"]
        """
    toml = project.write(tmp_path, "fledge.toml", text.encode())
    disk = library.build(toml, tmp_path / "debian.img").path
    before = disk.stat()
    port = free_port()
    console = run(
        disk,
        machine=Machine(kernel=vm.kernel(), publish=[f"{port}:80"], cpus=2, memory=1024),
        expect=["stage 1 as process 1", "stage 2 as process 1", "workload answers"],
        probe=f"http://127.0.0.1:{port}/",
    )
    assert "agent: starts /usr/sbin/nginx -g daemon off;\n" in console
    after = disk.stat()
    assert (before.st_mtime_ns, before.st_size) == (after.st_mtime_ns, after.st_size)
    cut = tmp_path / "cut.img"
    shutil.copy(disk, cut)
    os.truncate(cut, before.st_size // 2)
    with pytest.raises(FledgeError, match="shorter than its filesystem: it is truncated") as died:
        run(cut, expect=["workload answers"])
    assert died.value.exit_code == 1
    assert any("block count" in line for line in died.value.details)


@pytest.mark.real
def test_text_that_never_comes(tmp_path: Path) -> None:
    artifact = initramfs(
        tmp_path / "x.cpio.gz", b"#!/bin/busybox sh\necho hello\nbusybox poweroff -f\n"
    )
    with pytest.raises(ExpectationError, match=r"the guest ended .*'goodbye'") as ended:
        run(artifact, expect=["^hel+o$", "goodbye"])
    assert ended.value.exit_code == 6
    assert "hello" in ended.value.details
    assert "hello" in run(artifact)  # without a gate, the end of the guest is no failure


@pytest.mark.real
def test_time_that_is_over(tmp_path: Path, fledge: Fledge) -> None:
    artifact = initramfs(tmp_path / "x.cpio.gz", b"#!/bin/busybox sh\nbusybox sleep 1000\n")
    done = fledge(
        *("boot", artifact, "--kernel", vm.kernel(), "--expect", "never", "--timeout", "2"),
    )
    assert done.code == 6
    assert "the time was over before all that was expected was seen" in done.err
    assert "Raise --timeout" in done.err


@pytest.mark.real
@pytest.mark.parametrize("alone", [False, True])
def test_an_init_of_another_architecture(alone: bool, tmp_path: Path) -> None:
    """Started by the archive that loads modules, and by a kernel that has none."""
    kernel = vm.kernel()
    own = kernel.name.rpartition("-")[2]
    other, number = ("amd64", 62) if own == "arm64" else ("arm64", 183)
    artifact = initramfs(tmp_path / "x.cpio.gz", project.program(number))
    if alone:
        kernel = Path(shutil.copy(kernel, tmp_path / "bzImage"))
    with pytest.raises(FledgeError, match=f"died: /init is for {other}, not for {own}") as died:
        run(artifact, machine=Machine(kernel=kernel), expect=["never"])
    assert died.value.exit_code == 1
    assert "panicked" not in died.value.message
    assert any("Kernel panic" in line for line in died.value.details)


@pytest.mark.real
def test_an_init_that_is_missing(tmp_path: Path) -> None:
    artifact = initramfs(tmp_path / "x.cpio.gz", None)
    with pytest.raises(FledgeError, match="died: /init does not exist") as died:
        run(artifact, expect=["never"])
    assert any("can't execute '/init'" in line for line in died.value.details)


@pytest.mark.real
def test_the_other_architecture(tmp_path: Path) -> None:
    """Emulated on any machine."""
    other = vm.other_busybox().read_bytes()
    init = b"""#!/bin/busybox sh
        busybox mount -t proc proc /proc
        echo "runs on $(busybox uname -m)"
        busybox lsmod
        busybox poweroff -f
        """
    artifact = initramfs(tmp_path / "x.cpio.gz", init, busybox=other)
    machine = Machine(kernel=vm.kernel_of("other"))
    names = {"arm64": "aarch64", "amd64": "x86_64"}
    machine_name = names[vm.kernel_of("other").name.rpartition("-")[2]]
    run(artifact, machine, expect=[f"^runs on {machine_name}", "^virtio_blk"])
