"""What a build refuses would die in a virtual machine, and what its message advises would not.

Each artifact is made three times: by a build, which refuses it; from the same tree without the
checks of a build, and booted; and by a build after the advice was followed, and booted.
"""

from __future__ import annotations

import gzip
import os
import struct
from pathlib import Path
from typing import NamedTuple

import pytest

import fledge as library
from fledge.cpio import newc
from fledge.errors import ConfigError, ExpectationError, FledgeError
from fledge.machine import modules
from fledge.machine.boot_kernel import open_kernel
from fledge.operations.arguments import as_config, start_assembly
from fledge.operations.boot import Machine
from fledge.operations.build import lay_sources
from fledge.project import lock
from fledge.project.manifest import complete, path_beside, serialize
from fledge.report import Reporter
from fledge.session import Session
from fledge.sources.init import install
from fledge.tree import File, Tree, elf
from fledge.tree.content import Span, hash_file
from tests.support import disks, images, project, tars, vm
from tests.support.agents import AGENT
from tests.support.guests import MANIFEST, debian_files, host_busybox, initramfs, run
from tests.support.project import Fledge

pytestmark = pytest.mark.real

HOST = os.uname().machine
OWN, OTHER, OTHER_MACHINE = ("arm64", "amd64", 62) if HOST == "aarch64" else ("amd64", "arm64", 183)
"""Architectures: this machine's, another, and the other's number in ELF files."""

DASH = Path("/bin/dash").resolve()
LOADER = os.fsdecode(elf.read(Span(DASH, 0, DASH.stat().st_size)).loader)
_HEADERS = DASH.read_bytes()[64 : 64 + 56 * DASH.read_bytes()[56]]
DASH_END = max(
    offset + size
    for kind, offset, size in struct.iter_unpack("<I4xQ16xQ16x", _HEADERS)
    if kind == 1
)
"""Where the last segment that is loaded (PT_LOAD) ends in the file."""
LIBC = f"/lib/{HOST}-linux-gnu/libc.so.6"

INIT = b"#!/bin/busybox sh\necho the init runs\nexec busybox poweroff -f\n"
WORKLOAD = b"#!/bin/busybox sh\necho the workload runs\nexec /bin/busybox httpd -f\n"


def unchecked(toml: Path, output: Path) -> Path:
    """Build an artifact, and its manifest if it has one, without checking that it would boot."""
    config = as_config(toml)
    assembly = start_assembly(config, None, Session.default())
    lay_sources(config.sources, lock.load_pins(config, Reporter(), strict=False), assembly)
    disks.write(assembly.tree, output, config.format)
    if config.manifest:
        place = {"url": str(output), "checksum": str(hash_file(output).digest)}
        known = {"runtime": "hello", config.format.manifest_key: place}
        path_beside(output).write_bytes(serialize(complete(config.manifest, known)))
    return output


class Case(NamedTuple):
    """An initramfs that dies, and how to mend it."""

    role: str
    """The program that cannot run, ``app`` of the project: init or entrypoint."""
    app: bytes
    files: tuple[str, ...]
    """Files of this machine that the artifact has too."""
    problem: str
    advice: str
    mended_app: bytes
    mended_files: dict[str, str]
    """What mended mappings add: files of this machine, and where they are in the artifact."""
    sign: str
    """What the console shows when the mended artifact has booted."""


CASES = {
    "loader": Case(
        "entrypoint",
        DASH.read_bytes(),
        (),
        f"/usr/bin/app needs the loader {LOADER}, which is missing",
        f"Add {LOADER} and libc.so.6 with [mappings], or link the program statically.",
        DASH.read_bytes(),
        {LOADER: LOADER, LIBC: LIBC},
        "^the workload runs",
    ),
    "library": Case(
        "init",
        DASH.read_bytes(),
        (LOADER,),
        "/init needs libc.so.6, which is missing",
        "Add libc.so.6 with [mappings], or link the program statically.",
        DASH.read_bytes(),
        {LIBC: LIBC},
        "^# ",
    ),
    "architecture": Case(
        "entrypoint",
        project.program(OTHER_MACHINE),
        (),
        f"/usr/bin/app is for {OTHER}, not for {OWN}",
        f"Use one for {OWN}.",
        WORKLOAD,
        {},
        "^the workload runs",
    ),
    "interpreter": Case(
        "init",
        INIT.replace(b"/bin/busybox sh", b"/bin/bash"),
        (),
        "/init needs /bin/bash, but /bin/bash does not exist",
        "Add /bin/bash with [mappings], or use an interpreter that is there, such as #!/bin/sh.",
        INIT.replace(b"/bin/busybox sh", b"/bin/bash"),
        {str(DASH): "/bin/bash", LOADER: LOADER, LIBC: LIBC},
        "^the init runs",
    ),
    "env": Case(
        "init",
        INIT.replace(b"/bin/busybox sh", b"/bin/env bash"),
        (),
        "/init needs /bin/env, but env does not find bash in PATH=/usr/local/bin:/bin:/usr/bin",
        "Add bash, with what it needs, to a folder of that PATH, or use an interpreter that is"
        " there, such as #!/bin/sh.",
        INIT.replace(b"/bin/busybox sh", b"/bin/env bash"),
        {str(DASH): "/bin/bash", LOADER: LOADER, LIBC: LIBC},
        "^the init runs",
    ),
    "applet": Case(
        "init",
        INIT.replace(b"/bin/busybox sh", b"/bin/busybox bash"),
        (),
        "/init needs /bin/busybox, but /bin/busybox is busybox, which has no applet bash",
        "Add the program bash with what it needs, or use an interpreter that is there, such as"
        " #!/bin/sh.",
        INIT.replace(b"/bin/busybox sh", b"/bin/sh"),
        {},
        "^the init runs",
    ),
    "cut short": Case(
        "init",
        DASH.read_bytes()[:20_000],
        (LOADER, LIBC),
        f"/init is a damaged program: it is cut short: 20000 bytes of at least {DASH_END}",
        "Copy it again.",
        DASH.read_bytes(),
        {},
        "^# ",
    ),
    "carriage return": Case(
        "init",
        INIT.replace(b"\n", b"\r\n"),
        (),
        "the first line of /init ends with a carriage return, as Windows writes it: Linux runs"
        r" /bin/busybox sh\r",
        "Save it with the line ends of Unix (dos2unix).",
        INIT,
        {},
        "^the init runs",
    ),
}


def initramfs_project(folder: Path, role: str, app: bytes, mapped: dict[str, str]) -> Path:
    """Write a project with ``app`` in that role. Returns its fledge.toml."""
    project.write(folder, "app", app, executable=True)
    project.write(folder, "kestrel", AGENT)
    lines = ["[mappings]"]
    for path, destination in mapped.items():
        project.write(folder, f"files{path}", Path(path).read_bytes(), executable=True)
        lines.append(f'"files{path}" = "{destination}"')
    if role == "init":
        tables = '[init]\npath = "app"\n'
    else:
        lines.append('"app" = "/usr/bin/app"')
        command = "echo the workload runs; exec /bin/busybox httpd -f"
        tables = (
            f'{project.LOCAL_AGENT}{MANIFEST}entrypoint = ["/usr/bin/app", "-c", "{command}"]\n'
        )
    return project.make(folder, tables, "\n".join(lines), files={}, busybox_binary=host_busybox())


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_program_that_cannot_run(case: Case, tmp_path: Path) -> None:
    mapped = {path: path for path in case.files}
    toml = initramfs_project(tmp_path, case.role, case.app, mapped)
    with pytest.raises(ConfigError) as refused:
        library.build(toml, tmp_path / "refused.cpio.gz")
    assert refused.value.message.endswith(case.problem)
    assert refused.value.hint == case.advice

    with pytest.raises(FledgeError) as died:
        run(unchecked(toml, tmp_path / "dead.cpio.gz"), expect=[case.sign])
    assert died.value.message == f"the guest died: {case.problem}"
    assert died.value.hint == case.advice
    assert died.value.exit_code == 1
    assert "Kernel panic - not syncing: Attempted to kill init!" in died.value.details[-1]

    toml = initramfs_project(tmp_path, case.role, case.mended_app, mapped | case.mended_files)
    run(library.build(toml, tmp_path / "mended.cpio.gz").path, expect=[case.sign])


def disk_project(folder: Path, options: str, agent: bytes = AGENT) -> Path:
    """Write a project of a disk with a workload. Returns its fledge.toml."""
    entries = [tars.folder(name) for name in ("dev", "proc", "sys", "usr/bin")]
    layer = tars.pack(*entries, tars.file("usr/bin/app", WORKLOAD, mode=0o755))
    images.write_layout(folder / "layout", images.image(layer), "latest")
    project.write(folder, "kestrel", agent)
    project.write(folder, "busybox", host_busybox())
    text = f"""
        version = "1"
        strategy = "oci_rootfs"
        [source]
        image = "oci:layout:latest"
        [filesystem]
        {options}
        {project.LOCAL_AGENT}
        [mappings]
        "busybox" = "/bin/busybox"
        {MANIFEST}
        entrypoint = ["/usr/bin/app"]
        """
    return project.write(folder, "fledge.toml", text.encode())


def test_a_disk_without_room_for_the_agent(tmp_path: Path) -> None:
    agent = (AGENT + b"exit\n").ljust(6 << 20, b"#")
    toml = disk_project(tmp_path, "size_buffer_mb = 1", agent)
    with pytest.raises(ConfigError, match="size_buffer_mb leaves 1 MiB free") as refused:
        library.build(toml, tmp_path / "refused.img")
    assert refused.value.hint == "Set size_buffer_mb to 8 or more, or leave it out."

    with pytest.raises(FledgeError) as died:
        run(unchecked(toml, tmp_path / "dead.img"), expect=["^the workload runs"])
    assert died.value.message == "the guest died: the disk is full: the agent copies itself to it"
    assert died.value.hint == "Raise [filesystem] size_buffer_mb."
    assert died.value.exit_code == 1
    assert "agent: copy self failed" in died.value.details

    toml = disk_project(tmp_path, "size_buffer_mb = 8", agent)
    run(library.build(toml, tmp_path / "mended.img").path, expect=["^the workload runs"])


MOUNT = """#!/bin/busybox sh
busybox mount -t devtmpfs devtmpfs /dev
mount() { busybox mount -t NAME /dev/vda /tmp && echo "mounted $1"; }
for module in /modules/*; do
    case $module in *-last) mount before ;; esac
    busybox insmod $module
done
mount after
busybox cat /tmp/usr/bin/app
busybox poweroff -f
"""


def boot_with_module(disk: Path, name: str, folder: Path) -> str:
    """Boot an initramfs that mounts the disk before and after it loads the filesystem's module."""
    found = open_kernel(vm.kernel()).modules
    assert found
    order = modules.load_order(found, ["virtio_pci", "virtio_blk", "crc32c_generic", name])
    assert order[-1].name == name
    tree = Tree(mtime_ns=0)
    install(tree, MOUNT.replace("NAME", name).encode())
    tree.add(b"bin/busybox", File(mode=0o755, content=host_busybox()))
    for number, module in enumerate(order):
        end = "-last" if module is order[-1] else ""
        tree.add(f"modules/{number:02}{end}".encode(), File(mode=0o644, content=module.data))
    initrd = folder / "initrd"
    initrd.write_bytes(gzip.compress(b"".join(newc.write(tree)), 1))
    return vm.boot(initrd, disk=disk, virtio=True)


@pytest.mark.parametrize("name", ["xfs", "btrfs"])
def test_a_disk_that_volant_has_no_driver_for(name: str, fledge: Fledge, tmp_path: Path) -> None:
    """As ext4, the same disk boots: the test above."""
    if os.geteuid() != 0:
        pytest.skip("only root can write xfs and btrfs")
    disk_project(tmp_path, f'type = "{name}"')
    option = f"CONFIG_{name.upper()}_FS"
    advice = (
        f"{name} filesystem: build the kernel with {option}=y, or choose another type in"
        " [filesystem]"
    )
    built = fledge("build", "-o", "x.img")
    assert built.code == 0, built.err
    assert f"kernel volant: {advice}" in " ".join(built.err.split())
    with pytest.raises(FledgeError) as died:
        run(tmp_path / "x.img", expect=["^the workload runs"])
    assert died.value.exit_code == 1
    assert died.value.message == (
        "the guest died: the disk has no ext4 filesystem, which is what Volant mounts it as"
    )
    assert died.value.hint == 'Build it with [filesystem] type = "ext4".'

    [config] = vm.kernel().parent.glob("config-*")
    text = config.read_text()
    without = text.replace(f"{option}=m", f"# {option} is not set")
    assert without != text
    (tmp_path / "without.config").write_text(without)
    for kernel, said in (("without.config", "missing"), (vm.kernel(), "module")):
        checked = fledge("check", "x.img", "--kernel", kernel)
        assert checked.code == 1
        assert f"  {said:8}  {name} filesystem" in checked.out
    assert f"  {name} filesystem: load the module from an initramfs, or build" in checked.out
    console = boot_with_module(tmp_path / "x.img", name, tmp_path)
    assert "mounted before" not in console
    assert "No such device" in console
    assert "mounted after\n" + WORKLOAD.decode() in console


def test_an_init_that_is_found_by_a_link(tmp_path: Path) -> None:
    """Volant's kernel has a folder of its own in place of /bin."""
    init = """#!PATH/sh
        echo "the init runs, /bin is $(/usr/bin/busybox readlink /bin || echo a folder)"
        exec /usr/bin/busybox poweroff -f
        """
    images.write_layout(tmp_path / "layout", images.image(tars.pack(*debian_files())), "latest")
    binary = host_busybox()
    url = project.write(tmp_path, "busybox", binary).as_uri()
    source = project.source(url, binary) + 'image = "oci:layout:latest"\n'
    toml = project.make(
        tmp_path, source, '[init]\npath = "my-init"\n', files={}, busybox_binary=binary
    )
    project.write(tmp_path, "my-init", init.replace("PATH", "/bin").encode())
    with pytest.raises(ConfigError) as refused:
        library.build(toml, tmp_path / "refused.cpio.gz")
    assert refused.value.message == (
        f"{toml}: the artifact would not boot on Volant: /init needs /bin/sh, but /bin/sh does not"
        " exist: where the artifact has /bin -> usr/bin and /lib -> usr/lib, Volant's kernel has a"
        " folder of its own"
    )
    assert "such as #!/usr/bin/sh" in refused.value.hint

    volant = Machine(kernel=vm.kernel(), volant=True)
    with pytest.raises(FledgeError) as died:
        run(unchecked(toml, tmp_path / "dead.cpio.gz"), volant, expect=["^the init runs"])
    problem = refused.value.message.partition(" on Volant: ")[2]
    assert died.value.message == f"the guest died: {problem}"
    assert died.value.hint == refused.value.hint

    project.write(tmp_path, "my-init", init.replace("PATH", "/usr/bin").encode())
    mended = library.build(toml, tmp_path / "mended.cpio.gz").path
    run(mended, volant, expect=["^the init runs, /bin is a folder"])


def test_a_mapping_that_a_mount_hides(tmp_path: Path) -> None:
    """/var/run is a symlink of the image, and the init mounts a filesystem where it leads."""
    agent = b"#!/bin/busybox sh\nbusybox cat /var/run/app.conf /srv/app.conf\nbusybox poweroff -f\n"
    layer = tars.pack(tars.folder("run"), tars.symlink("var/run", "/run"))
    images.write_layout(tmp_path / "layout", images.image(layer), "latest")
    binary = host_busybox()
    url = project.write(tmp_path, "busybox", binary).as_uri()
    source = project.source(url, binary) + 'image = "oci:layout:latest"\n'
    project.write(tmp_path, "kestrel", agent)
    project.write(tmp_path, "app.conf", b"the mapped file\n")

    def made(destination: str) -> Path:
        mappings = f'[mappings]\n"app.conf" = "{destination}"\n'
        return project.make(
            tmp_path, source, project.LOCAL_AGENT, mappings, files={}, busybox_binary=binary
        )

    toml = made("/var/run/app.conf")
    with pytest.raises(ConfigError) as refused:
        library.build(toml, tmp_path / "refused.cpio.gz")
    assert refused.value.message == (
        f"{toml}: [mappings] {tmp_path}/app.conf would be hidden at /var/run/app.conf: a filesystem"
        " is mounted over it at boot"
    )
    said = vm.boot(unchecked(toml, tmp_path / "dead.cpio.gz"))
    assert "can't open '/var/run/app.conf'" in said
    mended = library.build(made("/srv/app.conf"), tmp_path / "mended.cpio.gz")
    assert "the mapped file\n" in vm.boot(mended.path)


def test_a_file_in_place_of_a_link_to_a_folder(tmp_path: Path) -> None:
    """In an image whose /bin is a link, a file mapped to /bin leaves no shell."""
    init = b"#!/bin/sh\necho the init runs\n"
    layer = tars.pack(*debian_files(), tars.file("usr/sbin/init", init, mode=0o755))
    toml = disk_project(tmp_path, "")
    images.write_layout(tmp_path / "layout", images.image(layer), "latest")

    def mapped(destination: str) -> Path:
        lines = toml.read_text().partition("[mappings]")[0]
        return project.write(
            tmp_path, "fledge.toml", f'{lines}[mappings]\nkestrel = "{destination}"\n'.encode()
        )

    with pytest.raises(ConfigError, match='/bin is a folder; write "/bin/" to map'):
        library.build(mapped("/bin"), tmp_path / "refused.img")

    config = as_config(mapped("/bin/"))
    assembly = start_assembly(config, None, Session.default())
    lay_sources(config.sources, lock.load_pins(config, Reporter(), strict=False), assembly)
    assembly.tree.add(b"bin", File(mode=0o755, content=AGENT))
    disks.write(assembly.tree, tmp_path / "dead.img", config.format)
    disk = "root=/dev/nvme0n1 rw"
    assert "No working init found" in vm.boot(None, disk=tmp_path / "dead.img", cmdline=disk)

    mended = library.build(config, tmp_path / "mended.img").path
    assert "the init runs\n" in vm.boot(None, disk=mended, cmdline=disk)


def test_a_panic_that_a_program_writes(tmp_path: Path) -> None:
    log = "[   12.345678] Kernel panic - not syncing: Attempted to kill init!"
    init = f"#!/bin/busybox sh\necho '{log}'\necho {'x' * 3000}\nbusybox poweroff -f\n"
    artifact = initramfs(tmp_path / "x.cpio.gz", init.encode())
    with pytest.raises(ExpectationError, match="the guest ended before") as ended:
        run(artifact, expect=["never"])
    assert ended.value.exit_code == 6
    assert log in ended.value.details
    assert "x" * 200 + "…" in ended.value.details
