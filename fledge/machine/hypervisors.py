"""The commands that boot a virtual machine: QEMU, Cloud Hypervisor, Firecracker."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from fledge.errors import ConfigError
from fledge.machine.network import LOOPBACK, Forward
from fledge.tree.names import printable

KVM = Path("/dev/kvm")
CPUS = Path("/proc/cpuinfo")

CONSOLES = {"amd64": "ttyS0", "arm64": "ttyAMA0"}
"""The serial console of QEMU's machine for each architecture that can be booted (OCI name)."""


class VirtualMachine(msgspec.Struct, frozen=True, kw_only=True):
    """A virtual machine that boots an artifact."""

    architecture: str
    """The architecture (OCI name): one of `CONSOLES`."""
    kernel: str
    """The path of the kernel image."""
    initrd: str
    """The path of the initramfs."""
    command_line: str
    disk: str | None
    """The path of a raw image, which becomes /dev/vda; None: it has no disk."""
    is_read_only: bool = False
    """Whether the guest never writes to its disk."""
    hash_disk: str | None = None
    """The path of a hash tree of dm-verity, which becomes /dev/vdb; None: there is none."""
    memory: int
    """MiB."""
    cpus: int
    forwards: tuple[Forward, ...] = ()
    """Ports to publish. None: the guest has no network."""
    accelerated: bool = False
    """Whether QEMU uses KVM."""

    @property
    def disks(self) -> dict[str, str]:
        """The paths of the disks, by names for them."""
        found = {"disk": self.disk, "hashes": self.hash_disk}
        return {name: path for name, path in found.items() if path}


def emulator(architecture: str) -> str:
    """Return the QEMU program for an architecture."""
    return {"amd64": "qemu-system-x86_64", "arm64": "qemu-system-aarch64"}[architecture]


def can_accelerate(architecture: str, host: str) -> bool:
    """Return whether KVM can run guests of an architecture. ``host`` is that of this host."""
    if architecture != host:
        return False
    try:
        os.close(os.open(KVM, os.O_RDWR | os.O_CLOEXEC))
        # In some virtual machines the device is there, but no guest gets anywhere: their processor
        # has no virtualization of its own.
        return host != "amd64" or bool(re.search(r"\b(vmx|svm)\b", CPUS.read_text()))
    except OSError:
        return False


def qemu(machine: VirtualMachine, program: str) -> list[str]:
    """Return the command for QEMU, with the console at its standard input and output.

    The disk is not written: changes go to a temporary file, which QEMU removes right away.
    ``program`` is QEMU: its name or path.
    """
    board = {"amd64": "q35", "arm64": "virt,gic-version=max"}[machine.architecture]
    # On arm64, most of an emulated boot would be pointer authentication by its own algorithm.
    emulated = {"amd64": "max", "arm64": "max,pauth-impdef=on"}[machine.architecture]
    command = [program, "-no-user-config", "-nodefaults"]
    command += ["-machine", board, "-accel", "kvm" if machine.accelerated else "tcg"]
    command += ["-cpu", "host" if machine.accelerated else emulated]
    command += ["-smp", str(machine.cpus), "-m", f"{machine.memory}M", "-no-reboot"]
    command += ["-display", "none", "-chardev", "stdio,id=console,signal=off"]
    command += ["-serial", "chardev:console"]
    command += ["-kernel", machine.kernel, "-initrd", machine.initrd]
    command += ["-append", machine.command_line]
    for name, path in machine.disks.items():
        file = path.replace(",", ",,")
        command += ["-drive", f"if=none,id={name},format=raw,snapshot=on,file={file}"]
        command += ["-device", f"virtio-blk-pci,drive={name}"]
    if machine.forwards:
        rules = [f"hostfwd=tcp:{LOOPBACK}:{each.host}-:{each.guest}" for each in machine.forwards]
        # The guest cannot begin a connection: it could reach what listens on this host's loopback.
        command += ["-netdev", ",".join(["user,id=network,restrict=on", *rules])]
        command += ["-device", "virtio-net-pci,netdev=network,romfile="]
    return command


def _cloud_hypervisor(machine: VirtualMachine) -> str:
    command = ["cloud-hypervisor", "--kernel", machine.kernel, "--initramfs", machine.initrd]
    command += ["--cmdline", machine.command_line, "--cpus", f"boot={machine.cpus}"]
    command += ["--memory", f"size={machine.memory}M", "--serial", "tty", "--console", "off"]
    if machine.disk:
        # Writes to sector 0 of a disk whose type is only guessed are refused since version 51.
        read_only = ",readonly=on" if machine.is_read_only else ""
        paths = machine.disks.values()
        disks = (f"path={_quoted(path)},image_type=raw{read_only}" for path in paths)
        command += ["--disk", *disks]
    return shlex.join(command)


def _quoted(value: str) -> str:
    """Quote a value for Cloud Hypervisor, if need be (its crate option_parser).

    In quotes only the quote is special, and is doubled. White space at the ends is cut off outside.
    """
    if value == value.strip() and not re.search(r'[,"\[\]]', value):
        return value
    return '"' + value.replace('"', '""') + '"'


def _firecracker(machine: VirtualMachine) -> str:
    drives = [
        {
            "drive_id": name,
            "path_on_host": path,
            "is_root_device": False,
            "is_read_only": machine.is_read_only,
        }
        for name, path in machine.disks.items()
    ]
    config = {
        "boot-source": {
            "kernel_image_path": machine.kernel,
            "initrd_path": machine.initrd,
            "boot_args": machine.command_line,
        },
        "drives": drives,
        "machine-config": {"vcpu_count": machine.cpus, "mem_size_mib": machine.memory},
    }
    return json.dumps(config, indent=2)


HYPERVISORS: Mapping[str, Callable[[VirtualMachine], str]] = {
    "qemu": lambda machine: shlex.join(qemu(machine, emulator(machine.architecture))),
    "cloud-hypervisor": _cloud_hypervisor,
    "firecracker": _firecracker,
}
"""What prints how to boot a machine: a command, or Firecracker's configuration (--config-file)."""


def describe(machine: VirtualMachine, hypervisor: str) -> str:
    """Return the command or configuration for one of `HYPERVISORS`.

    Raises `ConfigError` if the hypervisor cannot take a path or the kernel's command line.
    """
    if hypervisor != "qemu":
        _check_text(machine, hypervisor)
    return HYPERVISORS[hypervisor](machine)


def _check_text(machine: VirtualMachine, hypervisor: str) -> None:
    """Check what is text, and not bytes, to a program in Rust and to JSON."""
    for path in (machine.kernel, machine.initrd, *machine.disks.values()):
        try:
            path.encode()
        except UnicodeEncodeError as error:
            raise ConfigError(
                f"{hypervisor} takes only paths in UTF-8, which {printable(path)} is not",
                "Rename the file or folder, or link to it by another name.",
            ) from error
    if not machine.command_line.isascii() or not machine.command_line.isprintable():
        raise ConfigError(
            f"{hypervisor} takes only printable ASCII on the kernel's command line",
            "Change --append.",
        )


def check(hypervisor: str, forwards: Sequence[Forward]) -> None:
    """Raise `ConfigError` if fledge does not know the hypervisor, or how it publishes ports."""
    if hypervisor not in HYPERVISORS:
        raise ConfigError(
            f"{hypervisor} is not a known hypervisor", f"Name one of {', '.join(HYPERVISORS)}."
        )
    if forwards and hypervisor != "qemu":
        raise ConfigError(
            f"{hypervisor} has no network without privileges, so it cannot publish ports",
            "Leave out --publish, and add a tap device to what is printed.",
        )
