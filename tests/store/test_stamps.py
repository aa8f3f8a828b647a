"""Stamps of cached blobs: what they vouch for, and what makes them worthless."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
from isal.isal_zlib import crc32

from fledge.errors import CorruptError
from fledge.session import Session
from fledge.store import stamps
from fledge.store.cache import BackgroundVerifier, Cache
from fledge.store.housekeeping import prune, verify
from fledge.store.stamps import Stamp
from fledge.tree.content import Blob

DATA = b"The content of a layer. " * 4096
ROTTEN = DATA[:5000] + b"\xff" + DATA[5001:]


@pytest.fixture
def cache() -> Cache:
    return Session.default().cache


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any change is old enough for a stamp."""
    monkeypatch.setattr(stamps, "SETTLING", 0)


@pytest.fixture
def blob(cache: Cache, settled: None) -> Blob:
    """A blob with a stamp."""
    blob = cache.store(DATA)
    assert passes(cache, blob)
    assert stamp_of(cache, blob)
    return blob


def passes(cache: Cache, blob: Blob) -> bool:
    """Return whether a build that uses the blob would end."""
    verifier = BackgroundVerifier(cache)
    try:
        assert verifier.claim(blob.digest)
        return verifier.passes()
    finally:
        verifier.close()


def stamp_path(cache: Cache, blob: Blob) -> Path:
    return cache.root / "uses" / blob.digest.hex


def stamp_of(cache: Cache, blob: Blob) -> Stamp | None:
    data = stamp_path(cache, blob).read_bytes()
    return msgspec.json.decode(data, type=Stamp) if data else None


def forge(cache: Cache, blob: Blob, data: bytes = ROTTEN) -> Stamp:
    """Write other bytes into the blob, and a stamp that fits. Only this user can do that."""
    old = stamp_of(cache, blob)
    assert old
    rewrite(blob.path, data)
    status = blob.path.stat()
    identity = msgspec.structs.replace(
        old.identity,
        inode=status.st_ino,
        size=status.st_size,
        modified=status.st_mtime_ns,
        changed=status.st_ctime_ns,
    )
    stamp = Stamp(identity, blob.digest.hex, crc32(data))
    stamp_path(cache, blob).write_bytes(msgspec.json.encode(stamp))
    return stamp


def rewrite(path: Path, data: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(data)
    path.chmod(0o444)


def test_a_blob_is_stamped_when_it_is_used(cache: Cache, blob: Blob) -> None:
    status = blob.path.stat()
    stamp = stamp_of(cache, blob)
    assert stamp
    assert (stamp.digest, stamp.crc32) == (blob.digest.hex, crc32(DATA))
    assert stamp.identity.size == len(DATA)
    assert stamp.identity.changed == status.st_ctime_ns
    assert stamp_path(cache, blob).stat().st_mode & 0o777 == 0o600
    assert passes(cache, blob)
    assert stamp_of(cache, blob) == stamp
    assert blob.path.stat().st_ctime_ns == status.st_ctime_ns


def test_a_stamp_that_fits_stands_for_sha256(cache: Cache, blob: Blob) -> None:
    """So what only this user can forge is believed, but not by what checks the cache."""
    forge(cache, blob)
    assert passes(cache, blob)
    assert cache.find(blob.digest) is None
    with pytest.raises(CorruptError, match="damaged files in the cache, 1 of 1"):
        verify(cache, Session.default().reporter)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("boot", "00000000-0000-0000-0000-000000000000"),
        *((name, 1) for name in ("device", "inode", "size", "modified", "changed")),
    ],
)
def test_a_stamp_of_another_file_is_worthless(
    cache: Cache, blob: Blob, field: str, value: int | str
) -> None:
    stamp = forge(cache, blob)
    other = msgspec.structs.replace(stamp.identity, **{field: value})
    stamp_path(cache, blob).write_bytes(
        msgspec.json.encode(Stamp(other, stamp.digest, stamp.crc32))
    )
    assert not passes(cache, blob)


def test_a_stamp_of_another_digest_is_worthless(cache: Cache, blob: Blob) -> None:
    stamp = forge(cache, blob)
    other = msgspec.structs.replace(stamp, digest="0" * 64)
    stamp_path(cache, blob).write_bytes(msgspec.json.encode(other))
    assert not passes(cache, blob)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff" * 2000,
        b'{"identity": null}',
        b"9" * 2000,
        b'{"digest":"\xff"}',
        b'{"x":' + b"[" * 1000,
    ],
)
def test_a_damaged_stamp_is_replaced(cache: Cache, blob: Blob, data: bytes) -> None:
    stamp = stamp_of(cache, blob)
    stamp_path(cache, blob).write_bytes(data)
    assert passes(cache, blob)
    assert stamp_of(cache, blob) == stamp


def test_a_stamp_with_a_wrong_checksum_condemns_no_good_blob(cache: Cache, blob: Blob) -> None:
    stamp = stamp_of(cache, blob)
    assert stamp
    wrong = msgspec.structs.replace(stamp, crc32=stamp.crc32 ^ 1)
    stamp_path(cache, blob).write_bytes(msgspec.json.encode(wrong))
    assert passes(cache, blob)
    assert stamp_of(cache, blob) == stamp


@pytest.mark.parametrize("is_kept", [False, True])
def test_damage_in_place_is_found(cache: Cache, blob: Blob, is_kept: bool) -> None:
    """Also if the time of modification is set back: that sets the time of change."""
    before = blob.path.stat()
    rewrite(blob.path, ROTTEN)
    if is_kept:
        os.utime(blob.path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert blob.path.stat().st_mtime_ns == before.st_mtime_ns
    assert not passes(cache, blob)


def copy(path: Path) -> None:
    shutil.copy2(path, path.with_suffix(".copy"))
    path.with_suffix(".copy").replace(path)


@pytest.mark.parametrize("change", [copy, os.utime, lambda path: path.chmod(0o400)])
def test_what_was_only_copied_or_touched_gets_a_new_stamp(
    cache: Cache, blob: Blob, change: Callable[[Path], None]
) -> None:
    before = stamp_of(cache, blob)
    change(blob.path)
    assert passes(cache, blob)
    after = stamp_of(cache, blob)
    assert before
    assert after
    assert after.identity != before.identity
    assert after.crc32 == before.crc32


def test_what_changed_just_now_gets_no_stamp(cache: Cache) -> None:
    """Another change might leave the same times."""
    blob = cache.store(DATA)
    assert passes(cache, blob)
    assert stamp_of(cache, blob) is None


@pytest.mark.parametrize("of", ["stamp", "blob"])
def test_what_others_may_write_is_hashed(cache: Cache, blob: Blob, of: str) -> None:
    forge(cache, blob)
    if of == "stamp":
        stamp_path(cache, blob).chmod(0o622)
    else:
        blob.path.chmod(0o622)
        stamp = stamp_of(cache, blob)
        assert stamp
        changed = blob.path.stat().st_ctime_ns
        identity = msgspec.structs.replace(stamp.identity, changed=changed)
        fitting = msgspec.structs.replace(stamp, identity=identity)
        stamp_path(cache, blob).write_bytes(msgspec.json.encode(fitting))
    assert not passes(cache, blob)


@pytest.mark.parametrize("plant", [os.mkfifo, lambda path: path.symlink_to("/dev/null"), os.mkdir])
def test_what_is_planted_in_place_of_a_stamp_is_not_used(
    cache: Cache, blob: Blob, plant: Callable[[Path], None]
) -> None:
    stamp_path(cache, blob).unlink()
    plant(stamp_path(cache, blob))
    assert passes(cache, blob)
    rewrite(blob.path, ROTTEN)
    assert not passes(cache, blob)


def test_a_planted_folder_of_stamps_is_not_entered(settled: None, tmp_path: Path) -> None:
    user = Session.default().cache
    blob = user.store(DATA)
    kept = tmp_path / "elsewhere" / blob.digest.hex
    kept.parent.mkdir()
    kept.touch()
    (user.root / "uses").symlink_to(kept.parent)
    assert passes(user, blob)
    del user
    prune(Session.default().cache, None, 0)
    assert not blob.path.exists()
    assert kept.read_bytes() == b""


def test_a_pruned_blob_leaves_no_stamp(settled: None) -> None:
    user = Session.default().cache
    blob = user.store(DATA)
    assert passes(user, blob)
    path = stamp_path(user, blob)
    assert path.exists()
    del user
    prune(Session.default().cache, None, 0)
    assert not path.exists()


@pytest.mark.real
@pytest.mark.slow
def test_no_stamp_on_a_full_disk(tmp_path: Path, settled: None) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", folder], check=True)
    try:
        cache = Cache(folder / "cache")
        blob = cache.store(DATA)
        with suppress(OSError), (folder / "rest").open("wb", buffering=0) as rest:
            while True:
                rest.write(bytes(4096))
        assert passes(cache, blob)
        assert stamp_of(cache, blob) is None
        del blob, cache
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.real
@pytest.mark.slow
def test_rot_below_the_filesystem_is_found(tmp_path: Path, settled: None) -> None:
    """The disk returns other bytes, and no time of the file is another one."""
    image, folder = tmp_path / "disk.img", tmp_path / "disk"
    image.touch()
    os.truncate(image, 8 << 20)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    device = subprocess.run(
        ["losetup", "--find", "--show", image], check=True, capture_output=True, text=True
    ).stdout.strip()
    folder.mkdir()
    try:
        subprocess.run(["mount", device, folder], check=True)
        cache = Cache(folder / "cache")
        blob = cache.store(DATA)
        assert passes(cache, blob)
        stamp = stamp_of(cache, blob)
        digest = blob.digest
        del blob, cache
        subprocess.run(["umount", folder], check=True)
        with Path(device).open("r+b") as disk:
            disk.seek(disk.read().index(DATA) + 5000)
            disk.write(b"\xff")
        subprocess.run(["mount", device, folder], check=True)
        after = Cache(folder / "cache")
        rotten = after.claim(digest)
        assert rotten
        assert rotten.path.read_bytes() == ROTTEN
        assert stamp_of(after, rotten) == stamp
        status = rotten.path.stat()
        assert stamp
        assert (stamp.identity.device, stamp.identity.inode) == (status.st_dev, status.st_ino)
        assert stamp.identity.changed == status.st_ctime_ns
        assert not passes(after, rotten)
        del rotten, after
    finally:
        subprocess.run(["umount", folder], check=False)
        subprocess.run(["losetup", "--detach", device], check=True)
