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
from fledge.project import provenance, sealing
from fledge.project.provenance import Provenance
from fledge.report import Transfer
from fledge.session import Session
from fledge.sources import ownfiles
from fledge.tree import File, verity
from fledge.tree.block_digests import BLOCK_SIZE
from fledge.tree.content import HASH_SIZE, Content, Span, Sparse
from fledge.tree.digest import Digest
from fledge.tree.names import HASH_TREE_SUFFIX
from fledge.tree.verity import HashTree

REBUILD = "Build or copy the artifact again."

MAX_SEARCHED = 1 << 16
"""Blocks at the end of a disk in which a superblock is looked for that is not in its place."""

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

    seal: Seal | None
    """None: the hash tree is missing or cannot be read; ``problem`` says why."""
    expected: Digest | None
    """The root hash that it should have. None: nothing says it, so that of its tree counts."""
    damaged: tuple[Damaged, ...] = ()
    """The first damaged parts, at most `verity.MAX_DAMAGES`. Empty if another root hash is
    expected than that of the tree: nothing can be said of the data then."""
    problem: str = ""
    """Why there is no ``seal``; otherwise empty."""

    @property
    def is_intact(self) -> bool:
        """Whether a kernel reads all of it."""
        if self.seal is None or self.damaged:
            return False
        return self.expected in (None, self.seal.root_hash)

    @property
    def trusted(self) -> Seal | None:
        """The seal with the root hash to give to a kernel. None: it is not known, because nothing
        says it and the tree that gives it may be damaged.
        """
        if self.seal is None or self.is_intact:
            return self.seal
        return (
            msgspec.structs.replace(self.seal, root_hash=self.expected) if self.expected else None
        )


def path_beside(artifact: Path) -> Path:
    """Return the path of a hash tree beside an artifact."""
    return artifact.parent / f"{artifact.name}{HASH_TREE_SUFFIX}"


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


def recorded_root_hash(artifact: Path) -> Digest | None:
    """Return the root hash of an artifact by the provenance beside it, be that for these bytes or
    for other ones; None: it has none.
    """
    with suppress(FledgeError):
        return provenance.load(artifact).root_hash
    return None


def is_sealed(artifact: Path) -> bool:
    """Return whether an artifact has a hash tree, or should have one. Raises as `find`."""
    return recorded_root_hash(artifact) is not None or find(artifact) is not None


def find(artifact: Path) -> Seal | None:
    """Return the seal of an artifact; None: it is not sealed.

    Raises `CorruptError` if the tree is damaged, not for this artifact, or missing although the
    provenance of the artifact says that it is sealed; `FledgeError` if a file cannot be read.
    """
    with _opened(artifact) as file:
        size = os.lseek(file, 0, os.SEEK_END)
        with _explained(artifact):
            tree = verity.find_appended(file, size)
            if tree:
                return Seal(artifact, artifact, tree, verity.root_hash(file, file, tree))
        beside = path_beside(artifact)
        if not beside.is_file():
            with _explained(artifact):
                _refuse_lost(artifact, file, size)
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


def _refuse_lost(artifact: Path, file: int, size: int) -> None:
    """Raise `CorruptError` if an artifact without a hash tree had one."""
    if tree := _find_misplaced(file, size):
        raise CorruptError(
            f"{artifact} is sealed and damaged: it has {size} bytes, and should have"
            f" {tree.data_size + tree.size} with its hash tree",
            REBUILD,
        )
    if recorded_root_hash(artifact) is None:
        return
    sealed = f"{artifact} is sealed, as its provenance says, but"
    if sealing.is_beside(provenance.load(artifact).config):
        raise CorruptError(
            f"{sealed} its hash tree {path_beside(artifact)} does not exist",
            "Copy the file, too, or build the artifact again.",
        )
    data_blocks = verity.find_data_blocks(size)
    what = f"no disk with a hash tree has {size} bytes: it is cut off, or has more than was built"
    if data_blocks is not None:
        what = (
            f"of its {size} bytes, those at {data_blocks * BLOCK_SIZE} are no superblock of a hash"
            " tree: it is damaged, cut off, or has more than was built"
        )
    raise CorruptError(f"{sealed} {what}", REBUILD)


def _find_misplaced(file: int, size: int) -> HashTree | None:
    """Return the hash tree of a disk that was cut off in it, or to which something was added."""
    end = size // BLOCK_SIZE
    count = min(end, end // 64 + 16, MAX_SEARCHED)  # a tree has less than a 64th of its disk
    for block in range(end, end - count, -1):
        start = os.pread(file, verity.SUPERBLOCK.size, block * BLOCK_SIZE)
        if start.startswith(verity.SIGNATURE):
            with suppress(MalformedError):
                tree = verity.parse(start, block * BLOCK_SIZE)
                if tree.data_blocks == block:
                    return tree
    return None


def check_tree(path: Path) -> None:
    """Raise `CorruptError` if a file does not begin with the superblock of a hash tree."""
    with _opened(path) as file, _explained(path):
        _read_superblock(file)


def _read_superblock(file: int) -> HashTree:
    return verity.parse(os.pread(file, verity.SUPERBLOCK.size, 0), 0)


def verify_seal(artifact: PathLike, root_hash: str, *, session: Session | None = None) -> SealCheck:
    """Check a sealed artifact against a root hash, whoever made it, without privileges.

    ``root_hash`` is 64 hexadecimal digits. Raises `ConfigError` if it is not, or if the artifact is
    not sealed; `CorruptError` if it is in no known format; `FledgeError` if it cannot be read.
    """
    artifact = Path(artifact)
    try:
        expected = Digest.from_hex(root_hash.lower())
    except MalformedError as error:
        raise ConfigError(
            f"the root hash {error}", "Write the one that the build or its provenance says."
        ) from error
    find_format(artifact)  # what is no artifact at all
    with as_session(session).reporter.work("checking") as progress:
        found = examine(artifact, expected, progress)
    if found is None:
        raise ConfigError(
            f"{artifact} is not sealed: it has no hash tree of dm-verity, and"
            f" {path_beside(artifact)} does not exist",
            "Build it with [verity] in fledge.toml.",
        )
    return found


def examine(
    artifact: Path, expected: Digest | None, progress: Transfer | None = None
) -> SealCheck | None:
    """Check all of an artifact as `check` does, also one whose hash tree is missing or cannot be
    read. None: it is not sealed. Raises `FledgeError` if a file cannot be read.
    """
    try:
        found = find(artifact)
    except CorruptError as error:
        return SealCheck(None, expected, problem=error.message)
    return check(found, expected, progress) if found else None


def problem_beside(artifact: Path, record: Provenance) -> str:
    """Say why the hash tree beside an artifact is not the one that was built, as the provenance of
    the artifact records it; empty if it is, or if there is to be none.

    Reads the whole artifact. Raises `FledgeError` if it cannot be read.
    """
    if record.root_hash is None or not sealing.is_beside(record.config):
        return ""
    path = path_beside(artifact)
    if not path.is_file():
        return f"{path} does not exist"
    found = examine(artifact, record.root_hash)
    if found is None or found.seal is None:
        return found.problem if found else f"{path} is no hash tree"
    if found.seal.tree != verity.derive(record.digest, found.seal.tree.data_blocks, 0):
        return f"{path}: its superblock is not the one that was built"
    if not found.is_intact:
        return f"{path} does not seal this disk with the root hash {record.root_hash.hex}"
    return ""


def check(
    seal: Seal, expected: Digest | None = None, progress: Transfer | None = None
) -> SealCheck:
    """Check all of a sealed artifact against a root hash; None: against that of its tree.

    ``progress`` is told the bytes of data. Raises `FledgeError` if a file cannot be read.
    """
    if expected not in (None, seal.root_hash):
        return SealCheck(seal, expected)
    progress = progress or Transfer()
    progress.restart(0, seal.tree.data_size)
    with _opened(seal.artifact) as data, _opened(seal.file) as file, _explained(seal.file):
        found = list(verity.check(file, data, seal.tree, seal.root_hash, progress.advance))
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
