"""Boots artifacts on Debian's cloud kernel in QEMU, without KVM."""

import shutil
import subprocess
from pathlib import Path

import pytest

_CACHE = Path(__file__).parents[2] / ".cache"

# By the architecture that ends a kernel's name: QEMU, its options, and the console device. Most of
# a boot on arm64 would be pointer authentication; pauth-impdef chooses QEMU's own fast algorithm.
_MACHINES = {
    "amd64": ("qemu-system-x86_64", ("-M", "q35", "-cpu", "max"), "ttyS0"),
    "arm64": ("qemu-system-aarch64", ("-M", "virt", "-cpu", "max,pauth-impdef=on"), "ttyAMA0"),
}


def kernel() -> Path:
    """Return the kernel image. Its modules are in `../lib/modules` beside it."""
    return _image(_CACHE / "kernel")


def kernel_of(flavour: str) -> Path:
    """Return Debian's kernel of a flavour: cloud, generic or rt, for this machine. It is like
    `kernel()`, or, for other, the cloud kernel of the other architecture.
    """
    if flavour == "cloud":
        return kernel()
    native = kernel().name.rpartition("-")[2]
    other = "amd64" if native == "arm64" else "arm64"
    name = f"{other}-cloud" if flavour == "other" else f"{native}-{flavour}"
    return _image(_CACHE / "kernels" / name)


def _image(folder: Path) -> Path:
    found = sorted(folder.glob("boot/vmlinuz-*"))
    if not found:
        pytest.skip("no kernel to boot: run scripts/test-tools")
    return found[-1]


def configs() -> list[Path]:
    """Return the compressed configs of all flavours of Debian's kernel, on two architectures."""
    found = sorted(_CACHE.glob("kernels/config-*/usr/src/linux-config-*/config.*.xz"))
    if not found:
        pytest.skip("no kernel configs: run scripts/test-tools")
    return found


def other_busybox() -> Path:
    """Return the static busybox of the architecture that this machine has not."""
    found = sorted(_CACHE.glob("kernels/*-busybox/**/bin/busybox"))
    if not found:
        pytest.skip("no busybox of the other architecture: run scripts/test-tools")
    return found[0]


def boot(
    initrd: Path | None,
    *,
    cmdline: str = "",
    timeout: float = 120,
    disk: Path | None = None,
    image: Path | None = None,
    virtio: bool = False,
    memory: str = "2G",
) -> str:
    """Boot, wait until the guest powers off, panics or reboots, and return what its console said.

    The guest sees `disk` as /dev/nvme0n1, which it may write to: unlike virtio_blk, the driver
    is built into the kernel. With `virtio`, it is /dev/vda. `image` is a kernel; None: `kernel()`.
    """
    image = image or kernel()
    qemu, machine, console_device = _MACHINES[image.name.rpartition("-")[2]]
    if shutil.which(qemu) is None:
        pytest.skip(f"no {qemu}: run scripts/test-tools")
    command = [qemu, *machine, "-accel", "tcg", "-m", memory, "-no-reboot"]
    command += ["-nodefaults", "-display", "none", "-serial", "stdio"]
    command += ["-kernel", str(image)]
    command += ["-initrd", str(initrd)] if initrd else []
    command += ["-append", f"console={console_device} panic=-1 quiet {cmdline}"]
    if disk is not None:
        command += ["-blockdev", f"driver=raw,node-name=disk,file.driver=file,file.filename={disk}"]
        device = "virtio-blk-pci,drive=disk" if virtio else "nvme,drive=disk,serial=disk"
        command += ["-device", device]
    try:
        qemu_run = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired as expired:
        message = f"the guest still ran after {timeout} s:\n{_text(expired.stdout)}"
        raise AssertionError(message) from None
    console = _text(qemu_run.stdout)
    assert qemu_run.returncode == 0, f"QEMU failed:\n{console}"
    return console


def _text(console: bytes | None) -> str:
    return (console or b"").decode(errors="replace").replace("\r\n", "\n")
