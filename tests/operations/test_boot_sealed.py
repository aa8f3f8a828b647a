"""Disks that no kernel writes to are the root of a guest, sealed by dm-verity or not."""

from __future__ import annotations

import hashlib
import shlex
from pathlib import Path

import pytest

from fledge.errors import FledgeError
from fledge.operations import seal
from fledge.operations.boot import Gate, Machine, boot, boot_command
from fledge.operations.build import Artifact, build
from fledge.project import provenance
from fledge.report import Reporter
from fledge.session import Session
from fledge.tree.block_digests import BLOCK_SIZE
from tests.support import guests, images, project, tars, vm
from tests.support.disks import READ_ONLY

pytestmark = pytest.mark.real

AGENT = b"""#!/bin/busybox sh
b=/bin/busybox
$b mkdir -p /proc /sys /dev
$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
$b mount -t devtmpfs devtmpfs /dev
echo "agent runs as process $$ in $1 on $($b awk '$2 == "/" { print $3 }' /proc/mounts)"
echo text >/etc/new && echo "written $($b cat /etc/new)"
echo "overlay of $($b df -m / | $b awk 'END { print $2 }') MiB"
echo "large is $($b sha256sum /srv/large)"
$b poweroff -f
"""
"""What the agent of Volant does in stage 2, as far as it concerns its root."""


class Notes(Reporter):
    """Keeps the notes."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def note(self, message: str) -> None:
        self.found.append(message)


LARGE = hashlib.shake_128(b"large").digest(40 * BLOCK_SIZE)


def make(folder: Path, name: str, verity: str) -> Artifact:
    image = images.image(tars.pack(tars.folder("etc"), tars.file("srv/large", LARGE)))
    images.write_layout(folder / "layout", image, "latest")
    project.write(folder, "kestrel", AGENT)
    project.write(folder, "busybox", guests.host_busybox(), executable=True)
    text = f"""
        version = "1"
        strategy = "oci_rootfs"
        [source]
        image = "oci:layout:latest"
        {project.LOCAL_AGENT}
        [mappings]
        busybox = "/bin/busybox"
        [filesystem]
        type = "{name}"
        {READ_ONLY[name]}
        {verity}
        """
    toml = project.write(folder, "fledge.toml", text.encode())
    return build(toml, folder / "x.img", platform="linux/amd64")


@pytest.mark.parametrize("name", READ_ONLY)
@pytest.mark.parametrize("verity", ["", "[verity]\n"])
def test_it_is_the_root_below_an_overlay(verity: str, name: str, tmp_path: Path) -> None:
    artifact = make(tmp_path, name, verity)
    before = artifact.path.read_bytes()
    console = guests.run(artifact.path)
    assert "agent runs as process 1 in stage2 on overlay\n" in console
    assert "written text\n" in console
    assert f"large is {hashlib.sha256(LARGE).hexdigest()}" in console
    assert "Power down" in console
    assert artifact.path.read_bytes() == before


def test_a_flipped_byte_is_not_read(tmp_path: Path) -> None:
    """The guest gets an error in its place, and verify names the block and the file."""
    artifact = make(tmp_path, "ext4", '[verity]\nhash_tree = "beside"\n')
    with artifact.path.open("r+b") as file:
        offset = file.read().index(LARGE) + 21 * BLOCK_SIZE + 7
        file.seek(offset)
        file.write(bytes([LARGE[21 * BLOCK_SIZE + 7] ^ 1]))
    console = guests.run(artifact.path, Machine(kernel=vm.kernel(), append="overlay_size=64M"))
    assert "agent runs as process 1 in stage2 on overlay\n" in console
    assert "overlay of 64 MiB\n" in console
    assert f"data block {offset // BLOCK_SIZE} is corrupted" in console
    assert "sha256sum: /srv/large: I/O error\n" in console or "Input/output error" in console
    assert "large is \n" in console
    assert artifact.root_hash
    [damage] = seal.verify_seal(artifact.path, artifact.root_hash.hex).damaged
    assert damage.offset == offset - offset % BLOCK_SIZE
    assert damage.path == b"/srv/large"


def test_a_kernel_that_is_too_old(tmp_path: Path) -> None:
    """What `check --kernel` says is said before it starts, and by what the kernel says."""
    artifact = make(tmp_path, "erofs", 'compression = "zstd"\n')
    notes = Notes()
    with pytest.raises(FledgeError, match="cannot decompress the erofs on the disk") as caught:
        boot(
            artifact.path,
            machine=Machine(kernel=vm.kernel()),
            gate=Gate(expect=["never said"]),
            session=Session.default(reporter=notes),
        )
    assert "compression" in caught.value.hint
    assert [each for each in notes.found if each.startswith(f"kernel {vm.kernel()}: zstd in erofs")]


def test_the_root_hash_is_the_recorded_one(tmp_path: Path) -> None:
    """Whoever changes data and tree cannot make the kernel trust them."""
    artifact = make(tmp_path, "ext4", "[verity]\n")
    machine = Machine(kernel=vm.kernel())
    assert artifact.root_hash
    record = provenance.path_beside(artifact.path)
    other = "ab" * 32
    for recorded in (artifact.root_hash.hex, other):
        record.write_text(record.read_text().replace(artifact.root_hash.hex, recorded))
        command = shlex.split(boot_command(artifact.path, machine=machine))
        initrd = Path(command[command.index("-initrd") + 1]).read_bytes()
        assert f"sha256 {recorded} ".encode() in initrd


def test_the_tree_beside_is_a_second_disk(tmp_path: Path) -> None:
    artifact = make(tmp_path, "ext4", '[verity]\nhash_tree = "beside"\n')
    machine = Machine(kernel=vm.kernel())
    paths = [str(artifact.path), str(seal.path_beside(artifact.path))]
    for hypervisor, form in (
        ("qemu", "format=raw,snapshot=on,file={}"),
        ("cloud-hypervisor", "path={},image_type=raw,readonly=on"),
        ("firecracker", '"path_on_host": "{}"'),
    ):
        notes = Notes()
        session = Session.default(reporter=notes)
        shown = boot_command(artifact.path, hypervisor, machine=machine, session=session)
        assert "give each machine a copy" not in str(notes.found)
        positions = [shown.index(form.format(path)) for path in paths]
        assert positions == sorted(positions)
