"""Seals a disk by dm-verity, and checks what is sealed. No format knows of it.

The hash tree follows the data in the artifact, or is beside it in ``ARTIFACT.verity``, where
systemd-dissect(1) and RootImage= of systemd.exec(5) look for it.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from fledge.errors import (
    ConfigError,
    CorruptError,
    FledgeError,
    MalformedError,
    unreadable_argument,
)
from fledge.formats import find_format, open_artifact
from fledge.host.files import NewFile, PathLike
from fledge.host.hashing import hash_blocks
from fledge.host.output import Hasher
from fledge.operations.arguments import as_session
from fledge.project.provenance import Provenance
from fledge.report import Transfer
from fledge.session import Session
from fledge.sources import ownfiles
from fledge.tree import File, verity
from fledge.tree.block_digests import BLOCK_SIZE
from fledge.tree.content import HASH_SIZE, Content, Span, Sparse
from fledge.tree.digest import Digest
from fledge.tree.verity import HashTree

REBUILD = "Build or copy the artifact again."
SECTOR_SIZE = 512
"""Bytes of a sector, in which tables of the device mapper count."""


class Seal(msgspec.Struct, frozen=True):
    """The hash tree of an artifact, of which only the superblock and the top block are read."""

    artifact: Path
    file: Path
    """The file that has the tree: the artifact, or one beside it."""
    tree: HashTree
    root_hash: Digest
    """The root hash that the top block gives."""

    @property
    def is_appended(self) -> bool:
        """Whether the tree is in the artifact itself."""
        return self.file == self.artifact


class Damaged(msgspec.Struct, frozen=True):
    """Data of a sealed artifact that a kernel does not read."""

    offset: int
    """Bytes before it in the artifact."""
    size: int
    """In bytes."""
    level: int | None
    """The level of the hash tree that is damaged. None: the data itself is."""
    path: bytes | None
    """A file in the artifact that it is a part of, with a leading slash. None: not known."""


class SealCheck(msgspec.Struct, frozen=True):
    """Whether a sealed artifact is what its root hash says."""

    seal: Seal
    expected: Digest
    """The root hash that it should have."""
    damaged: tuple[Damaged, ...]
    """The first damaged parts, at most `verity.MAX_DAMAGES`. Empty if another root hash is
    expected than that of the tree: nothing can be said of the data then."""

    @property
    def is_intact(self) -> bool:
        """Whether a kernel reads all of it."""
        return self.seal.root_hash == self.expected and not self.damaged


def path_beside(artifact: Path) -> Path:
    """Return the path of a hash tree beside an artifact."""
    return artifact.parent / f"{artifact.name}{ownfiles.HASH_TREE_SUFFIX}"


def signature_path(artifact: Path) -> Path:
    """Return the path of the signature of an artifact's root hash, as systemd has it."""
    return artifact.parent / f"{artifact.name}{ownfiles.ROOT_HASH_SIGNATURE_SUFFIX}"


def write(file: int, hasher: Hasher, beside: NewFile | None, *, is_appended: bool) -> Digest:
    """Seal the image in an open file, and return the root hash.

    ``hasher`` has hashed the image, and hashes what is added to it: zeros up to a whole block, and
    the tree, if that is appended. Otherwise the tree is written to ``beside``; None: it is not
    kept. Raises `OSError`.
    """
    size = os.fstat(file).st_size
    data_size = size + -size % BLOCK_SIZE
    os.ftruncate(file, data_size)
    hasher.update_zeros(data_size - size)
    image, blocks = hasher.digest(), data_size // BLOCK_SIZE
    if is_appended:
        tree = verity.derive(image, blocks, data_size)
        root = verity.write(file, tree, file, hash_blocks)
        for position in range(data_size, data_size + tree.size, HASH_SIZE):
            hasher.update(os.pread(file, HASH_SIZE, position)).result()
        return root
    with beside.open() if beside else tempfile.TemporaryFile() as target:
        return verity.write(file, verity.derive(image, blocks, 0), target.fileno(), hash_blocks)


def write_again(artifact: NewFile, beside: NewFile, record: Provenance) -> None:
    """Write the tree beside an artifact that came without it: its provenance says all of it.

    Raises `CorruptError` if it has another root hash than that, `OSError`.
    """
    with artifact.open() as file, beside.open() as target:
        blocks = os.fstat(file.fileno()).st_size // BLOCK_SIZE
        tree = verity.derive(record.digest, blocks, 0)
        root = verity.write(file.fileno(), tree, target.fileno(), hash_blocks) if blocks else None
    if root != record.root_hash:
        raise CorruptError(
            f"{record.name} has another root hash than its provenance says", "Build it again."
        )


def find(artifact: Path) -> Seal | None:
    """Return the seal of an artifact; None: it is not sealed.

    Raises `CorruptError` if the tree is damaged or not for this artifact, `FledgeError` if a file
    cannot be read.
    """
    with _opened(artifact) as file:
        size = os.lseek(file, 0, os.SEEK_END)
        with _explained(artifact):
            tree = verity.find_appended(file, size)
            if tree:
                return Seal(artifact, artifact, tree, verity.root_hash(file, file, tree))
        beside = path_beside(artifact)
        if not beside.is_file():
            return None
        with _opened(beside) as target, _explained(beside):
            tree = _read_superblock(target)
            if os.fstat(target).st_size < tree.size:
                raise MalformedError(f"it is cut off: it has {tree.size} bytes")
            if tree.data_size != size:
                raise MalformedError(
                    f"it is for {tree.data_size} bytes, not the {size} of the disk"
                )
            return Seal(artifact, beside, tree, verity.root_hash(target, file, tree))


def check_tree(path: Path) -> None:
    """Raise `CorruptError` if a file does not begin with the superblock of a hash tree."""
    with _opened(path) as file, _explained(path):
        _read_superblock(file)


def _read_superblock(file: int) -> HashTree:
    return verity.parse(os.pread(file, verity.SUPERBLOCK.size, 0), 0)


def find_sealed(artifact: Path) -> Seal:
    """Do as `find`, and raise `ConfigError` if the artifact is not sealed."""
    find_format(artifact)  # what is no artifact at all
    found = find(artifact)
    if found is None:
        raise ConfigError(
            f"{artifact} is not sealed: it has no hash tree of dm-verity, and"
            f" {path_beside(artifact)} does not exist",
            "Build it with [verity] in fledge.toml.",
        )
    return found


def verify_seal(artifact: PathLike, root_hash: str, *, session: Session | None = None) -> SealCheck:
    """Check a sealed artifact against a root hash, whoever made it, without privileges.

    ``root_hash`` is 64 hexadecimal digits. Raises `ConfigError` if it is not, or if the artifact is
    not sealed; `CorruptError` if the superblock of its hash tree is damaged or hostile;
    `FledgeError` if it cannot be read.
    """
    try:
        expected = Digest.from_hex(root_hash.lower())
    except MalformedError as error:
        raise ConfigError(
            f"the root hash {error}", "Write the one that the build or its provenance says."
        ) from error
    found = find_sealed(Path(artifact))
    with as_session(session).reporter.work("checking") as progress:
        return check(found, expected, progress)


def check(
    seal: Seal, expected: Digest | None = None, progress: Transfer | None = None
) -> SealCheck:
    """Check all of a sealed artifact against a root hash; None: against that of its tree.

    ``progress`` is told the bytes of data. Raises `FledgeError` if a file cannot be read.
    """
    expected = expected or seal.root_hash
    if expected != seal.root_hash:
        return SealCheck(seal, expected, ())
    progress = progress or Transfer()
    progress.restart(0, seal.tree.data_size)
    with _opened(seal.artifact) as data, _opened(seal.file) as file, _explained(seal.file):
        found = list(verity.check(file, data, seal.tree, expected, progress.advance))
    paths = _find_paths(seal.artifact, found) if found else {}
    return SealCheck(
        seal,
        expected,
        tuple(
            Damaged(each.first * BLOCK_SIZE, each.blocks * BLOCK_SIZE, each.level, paths.get(each))
            for each in found
        ),
    )


def _find_paths(artifact: Path, damages: list[verity.Damage]) -> dict[verity.Damage, bytes]:
    """Return the first file that each damage is in, if the format has files as they are."""
    found: dict[verity.Damage, bytes] = {}
    with suppress(FledgeError), open_artifact(artifact) as opened:
        for path, node in opened.tree.walk():
            for start, size in _places(node.content, artifact) if isinstance(node, File) else ():
                for each in damages:
                    begin, end = each.first * BLOCK_SIZE, (each.first + each.blocks) * BLOCK_SIZE
                    if begin < start + size and start < end:
                        found.setdefault(each, b"/" + path)
    return found


def _places(content: Content, file: Path) -> Iterator[tuple[int, int]]:
    """Yield the offset and size of each part of a content that is in a file as it is."""
    if isinstance(content, Sparse) and content.path == file:
        yield from ((extent.source, extent.length) for extent in content.extents)
    elif isinstance(content, Span) and content.path == file:
        yield content.offset, content.size


def kernel_parameters(seal: Seal, device: str = "/dev/vda", tree_device: str = "/dev/vdb") -> str:
    """Return the part of a kernel's command line that sets a sealed disk up and mounts it
    (CONFIG_DM_INIT; Documentation/admin-guide/device-mapper/dm-init.rst).
    """
    table = device_table(seal, device, device if seal.is_appended else tree_device)
    return f'dm-mod.create="sealed,,,ro,{table}" root=/dev/dm-0 ro'


def device_table(seal: Seal, device: str, tree_device: str) -> str:
    """Return the line of a table of the device mapper: start, length, target, parameters."""
    return f"0 {seal.tree.data_size // SECTOR_SIZE} verity {parameters(seal, device, tree_device)}"


def parameters(seal: Seal, device: str, tree_device: str) -> str:
    """Return the parameters of dm-verity (device-mapper/verity.rst)."""
    tree = seal.tree
    start = tree.position(1) // BLOCK_SIZE
    return (
        f"1 {device} {tree_device} {BLOCK_SIZE} {BLOCK_SIZE} {tree.data_blocks} {start}"
        f" sha256 {seal.root_hash.hex} {tree.salt.hex() or '-'}"
    )


def systemd_parameters(seal: Seal, device: str = "/dev/vda", tree_device: str = "/dev/vdb") -> str:
    """Return the same for an initramfs with systemd (systemd-veritysetup-generator(8))."""
    parts = [
        f"roothash={seal.root_hash.hex}",
        f"systemd.verity_root_data={device}",
        f"systemd.verity_root_hash={device if seal.is_appended else tree_device}",
    ]
    if seal.is_appended:
        parts.append(f"systemd.verity_root_options=hash-offset={seal.tree.offset}")
    return " ".join(parts)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise unreadable_argument(path, error) from error
    try:
        yield file
    finally:
        os.close(file)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Say which file is malformed or cannot be read."""
    try:
        yield
    except MalformedError as error:
        raise CorruptError(f"the hash tree of {path}: {error}", REBUILD) from error
    except OSError as error:
        raise unreadable_argument(path, error) from error
