"""Layers of an image: fetched, decompressed, verified, applied."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import random
import shutil
import signal
import stat
import subprocess
import tarfile
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import pyzstd

from fledge.errors import CorruptError, NetworkError
from fledge.host.settings import Settings
from fledge.oci import layers
from fledge.oci.image import Layer
from fledge.oci.tar import WINDOW_SIZE
from fledge.oci.tar import Entry as Parsed
from fledge.oci.tar import read as read_tar
from fledge.report import Reporter
from fledge.session import Session
from fledge.store.cache import Cache
from fledge.tree import BlockDevice, CharDevice, Directory, Fifo, File, Symlink, Tree
from fledge.tree.budget import Budget
from fledge.tree.content import Span, Sparse, read_content
from fledge.tree.digest import Digest
from fledge.tree.growth import Growth
from tests.support.compressed import zstd_frame
from tests.support.images import image, opened_image, opened_layer, write_layout
from tests.support.tars import (
    END,
    Entry,
    base256,
    block,
    file,
    folder,
    hard_link,
    listing,
    pack,
    span,
    symlink,
)

TAR = pack(folder("etc"), file("etc/hosts", b"127.0.0.1 localhost\n" * 100))


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def using(cache: Cache) -> Session:
    return Session(Settings(), cache, Reporter())


def applied(tmp_path: Path, *tars: bytes) -> Tree:
    tree = Tree(mtime_ns=7)
    for tar in tars:
        layers.apply(tree, span(tmp_path, tar))
    return tree


def text(tree: Tree, path: bytes) -> bytes:
    node = tree.get(path, follow=True)
    assert isinstance(node, File)
    return b"".join(read_content(node.content))


@pytest.mark.parametrize(
    "blob",
    [
        TAR,
        gzip.compress(TAR),
        gzip.compress(TAR[:700]) + gzip.compress(b"") + gzip.compress(TAR[700:]),
        pyzstd.compress(TAR),
        pyzstd.compress(TAR[:700]) + pyzstd.compress(TAR[700:]),
        b"\x50\x2a\x4d\x18\x04\0\0\0skip" + pyzstd.compress(TAR),
        lzma.compress(TAR),
        lzma.compress(TAR[:700]) + bytes(4) + lzma.compress(TAR[700:]) + bytes(8),
        bz2.compress(TAR),
        bz2.compress(b"") + bz2.compress(TAR[:700]) + bz2.compress(TAR[700:]),
    ],
    ids=[
        *("plain", "gzip", "gzip-members", "zstd", "zstd-frames", "zstd-skippable"),
        *("xz", "xz-padded-streams", "bzip2", "bzip2-streams"),
    ],
)
def test_a_layer_is_the_same_however_it_is_compressed(
    blob: bytes, tmp_path: Path, cache: Cache
) -> None:
    tree = Tree(mtime_ns=0)
    layers.unpack(opened_image(opened_layer(tmp_path, TAR, blob)), tree, using(cache))
    assert listing(tree) == {"etc": "dir", "etc/hosts": "2000"}
    assert text(tree, b"etc/hosts") == b"127.0.0.1 localhost\n" * 100


def test_what_is_in_the_cache_is_not_fetched_again(tmp_path: Path, cache: Cache) -> None:
    first = list(layers.prepare(opened_image(opened_layer(tmp_path, TAR)), using(cache)))

    def fetch() -> Span:
        raise NetworkError("fetched again")

    image = opened_image(Layer(first[0].digest, fetch))
    [again] = layers.prepare(image, using(cache))
    assert again.path == first[0].path


def test_one_layer_can_stand_several_times_in_an_image(tmp_path: Path, cache: Cache) -> None:
    empty = opened_layer(tmp_path, pack())
    other = opened_layer(tmp_path, TAR)
    blobs = list(layers.prepare(opened_image(empty, other, empty), using(cache)))
    assert [blob.digest for blob in blobs] == [empty.diff_id, other.diff_id, empty.diff_id]


ZEROS = Digest("0" * 64)
GZIP = gzip.compress(TAR)
ZSTD = pyzstd.compress(TAR)
XZ = lzma.compress(TAR)
BZIP2 = bz2.compress(TAR)


@pytest.mark.parametrize(
    ("tar", "blob", "lies"),
    [
        (TAR, GZIP, {"digest": ZEROS}),
        (TAR, GZIP, {"diff_id": ZEROS}),
        (TAR, GZIP[:-20], {}),
        (TAR, GZIP[:-1], {}),
        (TAR, GZIP + b"garbage", {}),
        (TAR, GZIP + bytes(8), {}),
        (TAR, GZIP[:60] + b"\xff" * 40 + GZIP[100:], {}),
        (TAR, ZSTD[:-3], {}),
        (TAR, ZSTD + b"garbage", {}),
        (TAR, ZSTD[:4], {}),
        (TAR, ZSTD[:5], {}),
        (TAR, XZ[:-1], {}),
        (TAR, XZ + b"garbage", {}),
        (TAR, XZ[:60] + b"\xff" * 40 + XZ[100:], {}),
        (TAR, BZIP2[:-1], {}),
        (TAR, BZIP2 + b"garbage", {}),
        (TAR, BZIP2[:30] + b"\xff" * 40 + BZIP2[70:], {}),
    ],
)
def test_a_layer_that_lies_is_refused_and_leaves_nothing(
    tar: bytes, blob: bytes | None, lies: dict[str, Digest], tmp_path: Path, cache: Cache
) -> None:
    bad = opened_layer(tmp_path, tar, blob, **lies)
    with pytest.raises(CorruptError, match=r"^layer 2 of 2 of oci:test: "):
        list(layers.prepare(opened_image(opened_layer(tmp_path, pack()), bad), using(cache)))
    assert not cache.path(bad.diff_id).exists()
    assert not list((cache.root / "partial").iterdir())


@pytest.mark.parametrize(
    "tar", [TAR[:1600], b"not a tar " * 100, TAR[:100] + b"x" + TAR[101:], b"short"]
)
def test_a_layer_that_is_no_tar_is_refused_again_and_again(
    tar: bytes, tmp_path: Path, cache: Cache
) -> None:
    bad = opened_layer(tmp_path, tar)
    for _ in range(2):
        with pytest.raises(CorruptError, match=r"^layer 2 of 2 of oci:test: the tar entry"):
            layers.unpack(opened_image(opened_layer(tmp_path, pack()), bad), Tree(0), using(cache))
        assert not list((cache.root / "partial").iterdir())


def test_a_layer_is_applied_while_it_is_unpacked(
    tmp_path: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A byte after the archive's end is unpacked only when an entry has been read."""
    monkeypatch.setattr("fledge.tree.growth.STRETCH", 0)
    seen = threading.Event()

    def slow_decompress(pieces: Iterator[bytes]) -> Iterator[bytes]:
        tar = b"".join(pieces)
        yield from (tar[start : start + (99_999)] for start in range(0, len(tar), 99_999))
        assert seen.wait(60)
        yield b"?"

    def watched_read(blob: Span, budget: Budget, growth: Growth) -> Iterator[Parsed]:
        for entry in read_tar(blob, budget, growth):
            seen.set()
            yield entry

    monkeypatch.setattr(layers, "decompress", slow_decompress)
    monkeypatch.setattr("fledge.oci.tar.read", watched_read)
    tar = pack(file("etc/first", b"1"), file("big", bytes(3 << 20)), file("last", b"end"))
    tree = Tree(mtime_ns=0)
    layer = opened_layer(tmp_path, tar + b"?", tar)
    layers.unpack(opened_image(layer), tree, using(cache))
    assert text(tree, b"last") == b"end"
    last = tree.get(b"last")
    assert isinstance(last, File) and isinstance(last.content, Span)
    assert last.content.path == cache.path(layer.diff_id)
    assert last.content.path.read_bytes() == tar + b"?"


@pytest.mark.parametrize(
    ("blob", "lies", "match"),
    [
        (b"not a tar " * 100, {"diff_id": ZEROS}, "its tar has sha256"),
        (b"not a tar " * 100, {"digest": ZEROS}, "changed while it was read, or is damaged"),
        (TAR[:1600], {"diff_id": ZEROS}, "its tar has sha256"),
        (GZIP[:-20], {}, "it is truncated"),
    ],
)
def test_a_damaged_layer_is_called_so_even_if_it_cannot_be_applied(
    blob: bytes, lies: dict[str, Digest], match: str, tmp_path: Path, cache: Cache
) -> None:
    bad = opened_layer(tmp_path, TAR, blob, **lies)
    if "digest" in lies:
        bad = Layer(Digest.of(blob), bad.blob)
    with pytest.raises(CorruptError, match=f"^layer 2 of 2 of oci:test: .*{match}"):
        layers.unpack(opened_image(opened_layer(tmp_path, pack()), bad), Tree(0), using(cache))
    assert not cache.path(bad.diff_id).exists()
    assert not list((cache.root / "partial").iterdir())


@pytest.mark.slow
def test_a_bomb_ends(tmp_path: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "MAX_DECOMPRESSED_SIZE", 32 << 20)
    for compress in (gzip.compress, pyzstd.compress, lzma.compress, bz2.compress):
        bomb = compress(bytes(40 << 20))
        with pytest.raises(CorruptError, match=r"larger than 32\.0 MiB"):
            list(
                layers.prepare(
                    opened_image(opened_layer(tmp_path, b"", bomb, diff_id=ZEROS)), using(cache)
                )
            )
    assert not list((cache.root / "partial").iterdir())


def test_a_window_that_is_too_large_is_no_damage(tmp_path: Path, cache: Cache) -> None:
    blob = zstd_frame(TAR, window=21 << 3)
    with pytest.raises(CorruptError, match=r"^layer 1 of 1 of .* a window of 2.0 G") as caught:
        list(layers.prepare(opened_image(opened_layer(tmp_path, TAR, blob)), using(cache)))
    assert caught.value.hint.startswith("It is not damaged")


def test_a_layer_that_fledge_cannot_decompress_is_no_damage(tmp_path: Path, cache: Cache) -> None:
    blob = lzma.compress(TAR, format=lzma.FORMAT_ALONE)
    with pytest.raises(CorruptError, match=r"^layer 1 of 1 of .* by lzma, which") as caught:
        list(layers.prepare(opened_image(opened_layer(tmp_path, TAR, blob)), using(cache)))
    assert caught.value.hint.startswith("It is not damaged")


def test_a_failure_does_not_wait_for_the_other_layers(
    tmp_path: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "GRACE_PERIOD", 0.01)
    release = threading.Event()

    def stuck() -> Span:
        release.wait()
        raise AssertionError

    try:
        bad = opened_layer(tmp_path, TAR, GZIP, diff_id=ZEROS)
        with pytest.raises(CorruptError):
            list(layers.prepare(opened_image(Layer(Digest("1" * 64), stuck), bad), using(cache)))
    finally:
        release.set()


def test_ctrl_c_does_not_wait_for_a_download(
    tmp_path: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "GRACE_PERIOD", 0.01)
    release = threading.Event()

    def interrupted() -> Span:
        # A second time if Python loses an exception, as in a weakref's callback.
        os.kill(os.getpid(), signal.SIGINT)
        while not release.wait(5):
            os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError

    try:
        with pytest.raises(KeyboardInterrupt):
            list(layers.prepare(opened_image(Layer(Digest("1" * 64), interrupted)), using(cache)))
    finally:
        release.set()


LOWER = pack(
    folder("a"),
    file("a/old", b"1"),
    folder("a/sub"),
    file("a/sub/old", b"1"),
    file("b", b"1"),
    folder("usr"),
    folder("usr/bin"),
    file("usr/bin/sh", b"1"),
    symlink("bin", "usr/bin"),
)
KEPT = {"usr": "dir", "usr/bin": "dir", "usr/bin/sh": "1", "bin": "-> usr/bin"}
ALL = {"a": "dir", "a/old": "1", "a/sub": "dir", "a/sub/old": "1", "b": "1", **KEPT}


def without(*names: str, **more: str) -> dict[str, str]:
    return {name: kind for name, kind in ALL.items() if name not in names} | more


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ([file(".wh.b")], without("b")),
        ([file("a/.wh.sub")], without("a/sub", "a/sub/old")),
        ([file(".wh.a")], {"b": "1", **KEPT}),
        ([file(".wh.missing"), file("no/such/.wh.parent"), file("b/.wh.x")], ALL),
        ([file(".wh.b"), file("b", b"22")], without(b="2")),
        ([file("b", b"22"), file(".wh.b")], without(b="2")),
        ([file(".wh.a"), file("a/new")], {"a": "dir", "a/new": "0", "b": "1", **KEPT}),
        ([file("a/new"), file(".wh.a")], {"a": "dir", "a/new": "0", "b": "1", **KEPT}),
        ([file("a/.wh..wh..opq"), file("a/new")], {"a": "dir", "a/new": "0", "b": "1", **KEPT}),
        ([file("a/new"), file("a/.wh..wh..opq")], {"a": "dir", "a/new": "0", "b": "1", **KEPT}),
        (
            [folder("a/sub"), file("a/.wh..wh..opq")],
            {"a": "dir", "a/sub": "dir", "b": "1", **KEPT},
        ),
        ([file(".wh..wh..opq"), file("new")], {"new": "0"}),
        ([file("bin/.wh.sh")], without("usr/bin/sh")),
        ([file("bin/.wh..wh..opq")], without("usr/bin/sh")),
        ([file(".wh.bin"), file("bin/x")], without("bin") | {"bin": "dir", "bin/x": "0"}),
        (
            [folder("bin"), file("bin/.wh..wh..opq"), file("bin/x")],
            without() | {"bin": "dir", "bin/x": "0"},
        ),
        ([hard_link("c", "b"), file(".wh.b")], without("b", c="1")),
        ([hard_link("c", "b"), file(".wh.c")], without(c="1")),
        ([folder(".wh..wh.plnk"), file(".wh..wh.plnk/1"), file(".wh..wh.aufs")], ALL),
        ([file("b/c")], None),
        ([file(".wh.")], None),
        ([file(".wh..")], None),
        ([file("a/.wh...")], None),
        ([file(".wh.a"), hard_link("x", "a/old")], None),
    ],
    ids=lambda value: None if not isinstance(value, list) else "+".join(e.name for e in value),
)
def test_whiteouts_hide_the_layers_below_and_nothing_else(
    entries: list[Entry], expected: dict[str, str] | None, tmp_path: Path
) -> None:
    if expected is None:
        with pytest.raises(CorruptError):
            applied(tmp_path, LOWER, pack(*entries))
        return
    assert listing(applied(tmp_path, LOWER, pack(*entries))) == expected


def test_a_directory_over_a_directory_updates_it_and_other_things_replace(tmp_path: Path) -> None:
    tree = applied(
        tmp_path,
        LOWER,
        pack(folder("a", 0o1777), file("usr", b"x"), symlink("b", "a"), folder("bin")),
    )
    assert listing(tree) == {
        **{"a": "dir", "a/old": "1", "a/sub": "dir", "a/sub/old": "1"},
        **{"b": "-> a", "bin": "dir", "usr": "1"},
    }
    top = tree.get(b"a")
    assert top and top.mode == 0o1777


def test_parents_lead_through_symlinks_and_are_made(tmp_path: Path) -> None:
    tree = applied(tmp_path, LOWER, pack(file("./bin/ls", b"1"), file("/x/y/z", b"1")))
    assert tree.get(b"usr/bin/ls")
    made = tree.get(b"x/y")
    assert isinstance(made, Directory)
    assert (made.mode, made.uid, made.mtime_ns) == (0o755, 0, 7)


def test_a_path_leads_elsewhere_after_its_directory_is_replaced(tmp_path: Path) -> None:
    for spelling in ("a/b", "./a/b", "/a/b", "a/./b", "a/x/../b"):
        name = f"{spelling}/f"
        entries = [folder("a/"), folder(f"{spelling}/"), file(name, b"1"), folder("c")]
        tree = Tree(mtime_ns=0)
        layers.apply(tree, span(tmp_path, pack(*entries, symlink("a/b", "/c"), file(name, b"22"))))
        assert listing(tree) == {"a": "dir", "a/b": "-> /c", "c": "dir", "c/f": "2"}
        layers.apply(tree, span(tmp_path, pack(file(name), file("a/.wh.b"), file(name, b"333"))))
        assert listing(tree) == {"a": "dir", "a/b": "dir", "a/b/f": "3", "c": "dir", "c/f": "0"}


def test_a_whiteout_keeps_the_hard_links_of_its_layer(tmp_path: Path) -> None:
    tree = Tree(mtime_ns=0)
    layers.apply(tree, span(tmp_path, pack(folder("d"), file("d/old"), file("d/gone"))))
    links = [hard_link("d/new", "d/old"), hard_link("d/old", "d/gone")]
    hide = [file("d/.wh.new"), file("d/.wh..wh..opq"), file("d/.wh.old")]
    layers.apply(tree, span(tmp_path, pack(*links, *hide)))
    assert listing(tree) == {"d": "dir", "d/new": "0", "d/old": "0"}
    layers.apply(tree, span(tmp_path, pack(file("d/.wh.new"))))
    assert listing(tree) == {"d": "dir", "d/old": "0"}


def test_hard_links_name_one_node_and_may_change_its_metadata(tmp_path: Path) -> None:
    """As containerd does it: chown, setxattr, chmod and the time, on the node that both name."""
    original = file("f", b"x", mode=0o4755, uid=5)
    original.pax = {"SCHILY.xattr.user.a": "1", "SCHILY.xattr.security.capability": "c"}
    link, link_to_link = hard_link("copy", "f"), hard_link("s2", "s")
    for each in (link, link_to_link):
        each.mode, each.uid, each.mtime = 0o600, 7, 5
        each.pax = {"SCHILY.xattr.user.b": "2", "SCHILY.xattr.trusted.t": "t"}
    tree = applied(tmp_path, pack(original, link, symlink("s", "nowhere"), link_to_link))
    node, symbolic = tree.get(b"f"), tree.get(b"s")
    assert node and node is tree.get(b"copy")
    assert (node.mode, node.uid, node.mtime_ns) == (0o600, 7, 5_000_000_000)
    assert node.xattrs == {b"user.a": b"1", b"user.b": b"2", b"trusted.t": b"t"}
    assert symbolic and symbolic is tree.get(b"s2")
    assert (symbolic.mode, symbolic.uid, symbolic.mtime_ns) == (0o777, 7, 5_000_000_000)
    assert symbolic.xattrs == {b"trusted.t": b"t"}


def test_nodes_know_their_layer(tmp_path: Path) -> None:
    lower = pack(folder("a"), file("a/old", b"1"), file("a/replaced", b"1"), file("linked", b"1"))
    upper = pack(
        folder("a"), file("a/replaced", b"2"), hard_link("b", "linked"), file("made/new", b"2")
    )
    opened = opened_image(*(opened_layer(tmp_path, each) for each in (lower, upper)))
    tree = Tree(mtime_ns=7)
    layers.unpack(opened, tree, using(Cache(tmp_path / "cache")))
    tree.add(b"made/later/mapped", File(mode=0o644, content=b""))
    assert {path.decode(): node.origin for path, node in tree.walk()} == {
        **{"": 0, "a": 0, "a/old": 0, "linked": 0, "b": 0},
        **{"a/replaced": 1, "made": 1, "made/new": 1},
        **{"made/later": 2, "made/later/mapped": 2},
    }


def test_headers_are_found_whatever_lies_between(tmp_path: Path) -> None:
    """The reader reads several headers at once, if they are near."""
    sizes = [WINDOW_SIZE * n // 8 + extra for n in range(20) for extra in (-513, 0, 1)]
    names = [f"{size:0{30 + number * 3}}" for number, size in enumerate(map(abs, sizes))]
    entries = [file(name, bytes(int(name))) for name in names]
    for tar_format in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        tree = Tree(mtime_ns=0)
        layers.apply(tree, span(tmp_path, pack(*entries, tar_format=tar_format)))
        assert listing(tree) == {name: str(int(name)) for name in names}


def test_empty_values_leave_what_the_header_says(tmp_path: Path) -> None:
    empty = dict.fromkeys(("path", "linkpath", "size", "uid", "gid", "mtime"), "")
    entries = [
        file("a", b"12345", uid=3, pax=empty),
        Entry("l", tarfile.SYMTYPE, linkname="a", pax=empty),
        Entry("h", tarfile.LNKTYPE, linkname="a", uid=4, pax=empty),
    ]
    long = block(b"././@LongLink", b"\0", b"L") + block(b"f", b"1")
    tree = applied(tmp_path, pack(*entries), long + END)
    assert listing(tree) == {"a": "5", "l": "-> a", "h": "5", "f": "1"}
    node = tree.get(b"a")
    assert node and (node.uid, node.mtime_ns) == (4, 1_600_000_000_000_000_000)


@pytest.mark.parametrize(
    ("number", "owner"),
    [
        (-2, (1 << 32) - 2),
        (-1, 0),
        ((1 << 32) - 2, (1 << 32) - 2),
        ((1 << 32) - 1, 0),
        ((1 << 32) + 5, 5),
        (-(1 << 31) - 1, (1 << 31) - 1),
    ],
)
def test_owners_beyond_32_bits_are_those_of_chown(number: int, owner: int, tmp_path: Path) -> None:
    in_header = block(b"a", fields={108: base256(number), 116: base256(number)}) + END
    in_record = pack(file("b", pax={"uid": str(number), "gid": str(number)}))
    tree = applied(tmp_path, in_header, in_record)
    for name in (b"a", b"b"):
        node = tree.get(name)
        assert node and (node.uid, node.gid) == (owner, owner)


def test_numbers_may_have_a_sign_and_leading_zeros(tmp_path: Path) -> None:
    pax = {"size": "0" * 21 + "5", "uid": "+" + "0" * 30 + "7", "mtime": "+" + "0" * 20 + "8.5"}
    node = applied(tmp_path, pack(file("a", b"12345", pax=pax))).get(b"a")
    assert isinstance(node, File)
    assert isinstance(node.content, Span)
    assert (node.content.size, node.uid, node.mtime_ns) == (5, 7, 8_500_000_000)


def test_what_has_no_content_may_claim_any_size(tmp_path: Path) -> None:
    entries = [
        block(b"d/", typeflag=b"5", fields={124: b"00000001000"}),
        block(b"e/", typeflag=b"5", fields={124: base256(-5, 12)}),
        block(b"f", b"1"),
    ]
    tree = applied(tmp_path, b"".join(entries) + END)
    assert listing(tree) == {"d": "dir", "e": "dir", "f": "1"}


def sparse(count: int) -> Entry:
    """A sparse file of ``count`` runs of one byte, in GNU's pax format 1.0."""
    numbers = [count, *(number for run in range(count) for number in (2 * run, 1))]
    sparse_map = b"".join(b"%d\n" % number for number in numbers)
    version = {"major": "1", "minor": "0", "realsize": str(2 * count), "name": "s"}
    return file(
        "GNUSparseFile.0/s",
        sparse_map + bytes(-len(sparse_map) % 512) + b"x" * count,
        pax={f"GNU.sparse.{key}": value for key, value in version.items()},
    )


@pytest.mark.slow
def test_the_limit_of_sparse_files_is_named(tmp_path: Path) -> None:
    tree = applied(tmp_path, pack(sparse(1 << 16)))
    node = tree.get(b"s")
    assert isinstance(node, File)
    assert isinstance(node.content, Sparse)
    assert len(node.content.extents) == 1 << 16
    with pytest.raises(CorruptError, match="fledge takes sparse files of at most 65536 runs"):
        applied(tmp_path, pack(sparse((1 << 16) + 1)))


@pytest.mark.parametrize(
    ("records", "size"),
    [
        ({"map": "0,3"}, "3"),
        ({"map": "4,3", "size": "9"}, "9"),
        ({"map": "4,3", "realsize": "9", "major": "0", "minor": "1"}, "9"),
        ({"map": "4,3", "realsize": "8", "size": "9", "major": "0", "minor": "0"}, "9"),
        ({"map": "4,3", "size": "9", "major": "2", "minor": "0"}, "3"),
        ({"map": "4,3", "size": "9", "major": "0"}, "3"),
        ({"map": "", "size": "9"}, "3"),
    ],
)
def test_sparse_files_are_known_by_version_and_map(
    records: dict[str, str], size: str, tmp_path: Path
) -> None:
    pax = {f"GNU.sparse.{key}": value for key, value in records.items()}
    assert listing(applied(tmp_path, pack(file("s", b"abc", pax=pax)))) == {"s": size}


@pytest.mark.slow
def test_a_layer_that_an_image_lists_twice_is_parsed_once(
    tmp_path: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Span] = []
    accepted = 0

    def counting_read(blob: Span, budget: Budget, growth: Growth | None = None) -> Iterator[Parsed]:
        read.append(blob)
        return read_tar(blob, budget, growth)

    monkeypatch.setattr("fledge.oci.tar.read", counting_read)
    for seed in range(40):
        stack = [pack(*entries) for entries in _random_stack(random.Random(seed))]  # noqa: S311
        tars = [stack[0], stack[1], stack[0], stack[2], stack[1], stack[0]]
        tree = Tree(mtime_ns=7)
        opened = opened_image(*(opened_layer(tmp_path, tar) for tar in tars))
        try:
            expected = applied(tmp_path, *tars)
        except CorruptError:
            with pytest.raises(CorruptError):
                layers.unpack(opened, tree, using(cache))
            continue
        read.clear()
        layers.unpack(opened, tree, using(cache))
        assert len(read) == len(set(tars))
        assert _described(tree) == _described(expected), f"seed {seed}"
        accepted += 1
    assert accepted > 3


def test_all_types_and_fields(tmp_path: Path) -> None:
    long = "n" * 255 + "/" + "m" * 200
    capability = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0".decode()
    tree = applied(
        tmp_path,
        pack(
            Entry("null", tarfile.CHRTYPE, device=(1, 3), mode=0o666),
            Entry("sda", tarfile.BLKTYPE, device=(8, 0), mode=0o660),
            Entry("pipe", tarfile.FIFOTYPE, mode=0),
            file("su", b"x", mode=0o4755, uid=3_000_000),
            file(long, b"long"),
            symlink("l", "t" * 3000),
            file(
                "xattrs",
                pax={
                    "SCHILY.xattr.security.capability": capability,
                    "SCHILY.xattr.user.k": "=\n",
                    "SCHILY.xattr.security.selinux": "label",
                    "SCHILY.xattr.system.nfs4_acl": "acl",
                    "mtime": "-1.987654321987",
                },
            ),
            Entry("c", b"7", data=b"contiguous"),
            file("old\udcff", b"x", mtime=-5),
        ),
    )
    null, sda, su = tree.get(b"null"), tree.get(b"sda"), tree.get(b"su")
    assert isinstance(null, CharDevice)
    assert (null.major, null.minor, null.mode) == (1, 3, 0o666)
    assert isinstance(sda, BlockDevice)
    assert (sda.major, sda.minor) == (8, 0)
    assert isinstance(tree.get(b"pipe"), Fifo)
    assert su and (su.mode, su.uid) == (0o4755, 3_000_000)
    assert text(tree, long.encode()) == b"long"
    link = tree.get(b"l")
    assert isinstance(link, Symlink)
    assert len(link.target) == 3000
    node = tree.get(b"xattrs")
    assert node and node.mtime_ns == -1_987654321
    assert node.xattrs == {b"security.capability": capability.encode(), b"user.k": b"=\n"}
    assert text(tree, b"c") == b"contiguous"
    old = tree.get(b"old\xff")
    assert old and old.mtime_ns == -5_000_000_000


def test_gnu_and_old_archives(tmp_path: Path) -> None:
    entries = (
        file("d" * 90 + "/" + "e" * 90, b"1"),
        symlink("s", "t" * 200),
        file("x", uid=1 << 30),
    )
    for tar_format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        tree = applied(tmp_path, pack(*entries, tar_format=tar_format))
        assert text(tree, b"d" * 90 + b"/" + b"e" * 90) == b"1"
        node = tree.get(b"x")
        assert node and node.uid == 1 << 30
    directory = Entry("dir/", tarfile.AREGTYPE)
    assert listing(applied(tmp_path, pack(directory, tar_format=tarfile.USTAR_FORMAT))) == {
        "dir": "dir"
    }


USTAR, GNU = b"ustar\x0000", b"ustar  \0"
OCTAL = b"14371573000"
"""A time."""
STAR = {476: OCTAL, 488: OCTAL, 508: b"tar\0"}
LONG = b"p" * 131
"""As long as star's prefix."""


@pytest.mark.parametrize(
    ("magic", "fields", "path"),
    [
        (USTAR, {345: b"opt/x"}, b"opt/x/f"),
        (b"ustar\0 \0", {345: b"opt/x"}, b"opt/x/f"),
        (b"ustar\0\0\0", {345: b"opt/x"}, b"opt/x/f"),
        (b"ustar\0\xff\xff", {345: b"\xffopt"}, b"\xffopt/f"),
        (USTAR, {345: LONG + b"q" * 24}, LONG + b"q" * 24 + b"/f"),
        (USTAR, {345: LONG, **STAR}, LONG + b"/f"),
        (b"ustar\0 \0", {345: b"opt", **STAR}, b"opt/f"),
        (USTAR, {345: b"", **STAR}, b"f"),
        (USTAR, {345: LONG, 508: b"tar "}, LONG + b"/f"),
        (GNU, {345: b"opt/x"}, b"opt/x/f"),
        (GNU, {345: b"12345678/x"}, b"12345678/x/f"),
        (GNU, {345: b"12345670123/x"}, b"12345670123/x/f"),
        (GNU, {345: "opt/é".encode()}, b"f"),
        (GNU, {345: OCTAL}, b"f"),
        (GNU, {345: OCTAL, 357: OCTAL}, b"f"),
        (GNU, {345: OCTAL, 357: b"\0no time"}, b"f"),
        (GNU, {345: b"\xff" * 12}, b"f"),
        (GNU, {345: b"", 357: b"no time"}, b"f"),
        (b"ustar  0", {345: b"opt"}, b"f"),
        (b"\0" * 8, {345: b"opt"}, b"f"),
    ],
)
def test_a_prefix_is_where_the_format_has_it(
    magic: bytes, fields: dict[int, bytes], path: bytes, tmp_path: Path
) -> None:
    tree = applied(tmp_path, block(b"f", b"data", magic=magic, fields=fields) + END)
    assert [name for name, node in tree.walk() if isinstance(node, File)] == [path]


def test_what_docker_wrote_for_a_far_owner_with_a_long_path(tmp_path: Path) -> None:
    """Docker up to 17.05: GNU's magic, for the owner, and the prefix of ustar."""
    fields = {345: b"node_modules/" * 11 + b"lib", 108: base256(2097999)}
    tree = applied(tmp_path, block(b"main.js", b"12345", magic=GNU, fields=fields) + END)
    node = tree.get(b"node_modules/" * 11 + b"lib/main.js")
    assert isinstance(node, File)
    assert node.uid == 2097999


@pytest.mark.parametrize(
    ("magic", "numbers"), [(USTAR, (1, 3)), (GNU, (1, 3)), (b"\0" * 8, (0, 0))]
)
def test_device_numbers_are_where_the_format_has_them(
    magic: bytes, numbers: tuple[int, int], tmp_path: Path
) -> None:
    fields = {329: b"0000001", 337: b"0000003"}
    tree = applied(tmp_path, block(b"null", b"", b"3", magic, fields) + END)
    node = tree.get(b"null")
    assert isinstance(node, CharDevice)
    assert (node.major, node.minor) == numbers


def test_an_old_sparse_map_is_in_the_format_of_gnu(tmp_path: Path) -> None:
    fields = {386: b"00000000000", 398: b"00000000004", 483: b"00000000011"}
    entry = block(b"f", b"data", b"S", GNU, fields)
    assert listing(applied(tmp_path, entry + END)) == {"f": "9"}
    with pytest.raises(CorruptError, match="not in GNU's format"):
        applied(tmp_path, block(b"f", b"data", b"S", USTAR, fields) + END)


@pytest.mark.parametrize(
    "tar_format", ["gnu", "posix:0.0", "posix:0.1", "posix:1.0"], ids=lambda name: name[-3:]
)
def test_holes_stay_holes(tar_format: str, tmp_path: Path) -> None:
    name, _, version = tar_format.partition(":")
    size = 70 << 20
    with (tmp_path / "holey").open("wb") as holey:
        for offset in range(0, 60 << 20, 2 << 20):  # more extents than the header has room for
            holey.seek(offset)
            holey.write(b"data%d" % offset)
        holey.truncate(size)
    command = ["tar", "-cf", "t.tar", "-S", f"--format={name}", "holey"]
    subprocess.run(
        command[:-1] + ([f"--sparse-version={version}"] if version else []) + command[-1:],
        cwd=tmp_path,
        check=True,
    )
    tar = tmp_path / "t.tar"
    if tar.stat().st_size > 50 << 20:
        pytest.skip(f"the filesystem of {tmp_path} keeps no holes")
    tree = Tree(mtime_ns=0)
    layers.apply(tree, Span(tar, 0, tar.stat().st_size))
    node = tree.get(b"holey")
    assert isinstance(node, File)
    assert isinstance(node.content, Sparse)
    assert node.content.size == size
    with (tmp_path / "holey").open("rb") as holey:
        assert all(holey.read(len(piece)) == piece for piece in read_content(node.content))
        assert not holey.read()


@pytest.mark.real
def test_the_same_filesystem_as_umoci_makes(tmp_path: Path) -> None:
    """Random layers, applied by fledge and by ``umoci raw unpack`` as root."""
    if not shutil.which("umoci"):
        pytest.skip("umoci is not installed")
    if os.geteuid() != 0:
        pytest.skip("umoci needs root to set owners and make devices")
    accepted = 0
    for seed in range(120):
        tars = [pack(*entries) for entries in _random_stack(random.Random(seed))]  # noqa: S311
        folder = tmp_path / str(seed)
        write_layout(folder / "image", image(*tars), "latest")
        umoci = subprocess.run(
            ["umoci", "raw", "unpack", "--image", folder / "image:latest", folder / "rootfs"],
            capture_output=True,
            check=False,
        )
        if umoci.returncode == 0:
            accepted += 1
            tree = applied(tmp_path, *tars)
            assert _described(tree) == _described_on_disk(folder / "rootfs"), f"seed {seed}"
    assert accepted > 10


@pytest.mark.real
def test_the_same_names_as_umoci_reads(tmp_path: Path) -> None:
    """Headers of mixed formats, read by us and by Go."""
    if not shutil.which("umoci"):
        pytest.skip("umoci is not installed")
    accepted = 0
    for seed in range(60):
        chosen = random.Random(seed)  # noqa: S311
        fields = {345: chosen.choice([b"", b"opt/x", OCTAL, b"p" * 155, b"\xff" * 12, b"77/8"])}
        if chosen.random() < 0.5:
            fields |= {chosen.choice([357, 476, 500]): chosen.choice([OCTAL, b"x/y", b"\xff" * 12])}
        if chosen.random() < 0.5:
            fields |= {508: b"tar\0"}
        magic = chosen.choice([USTAR, GNU, b"ustar\0 \0", b"ustar  0", b"\0" * 8])
        tar = block(b"f", b"data", magic=magic, fields=fields) + END
        folder = tmp_path / str(seed)
        write_layout(folder / "image", image(tar), "latest")
        umoci = subprocess.run(
            [
                *("umoci", "raw", "unpack", "--rootless"),
                *("--image", f"{folder / 'image'}:latest", folder / "rootfs"),
            ],
            capture_output=True,
            check=False,
        )
        if umoci.returncode == 0:
            accepted += 1
            paths = (folder / "rootfs").rglob("*")
            names = {os.fsencode(path.relative_to(folder / "rootfs")) for path in paths}
            assert {name for name, _ in applied(tmp_path, tar).walk() if name} == names, seed
    assert accepted > 30


NAMES = ("a", "b", "c/a", "c/b", "c/d/a", "l/a", "l/d", "m", "c", "l")
"""Names that often collide; ``l`` and ``m`` are often symlinks."""


def _random_stack(random: random.Random) -> list[list[Entry]]:
    stack = [
        [symlink("l", random.choice(["c", "/c", "../c/d", "nowhere", "gone/../c"])), folder("c")]
    ]
    # One for all, because umoci, unlike containerd, ignores what the entry of a hard link says.
    mode = random.choice([0o4755, 0o644, 0])
    for _ in range(3):
        entries = []
        for _ in range(random.randint(1, 6)):
            name = random.choice(NAMES)
            parent, slash, last = name.rpartition("/")
            entries.append(
                random.choice(
                    [
                        file(name, b"x" * random.randint(0, 5), mode=mode),
                        file(name, b"y", mode=mode, pax={"SCHILY.xattr.user.k": "v"}),
                        folder(name, random.choice([0o700, 0o1777])),
                        symlink(name, random.choice((*NAMES, "gone/../c", "a/../../c"))),
                        replace(hard_link(name, random.choice(NAMES)), mode=mode),
                        file(parent + slash + ".wh." + last),
                        file(parent + slash + ".wh..wh..opq"),
                        Entry(name, tarfile.FIFOTYPE, mode=mode),
                        Entry(name, tarfile.CHRTYPE, device=(1, 3), mode=mode),
                    ]
                )
            )
        stack.append(entries)
    return stack


Description = dict[str, tuple[object, ...]]


def _described(tree: Tree) -> Description:
    names = Counter(node for _, node in tree.walk())
    described: Description = {}
    for path, node in tree.walk():
        if path:
            data = b"".join(read_content(node.content)) if isinstance(node, File) else b""
            described[path.decode()] = (
                oct(node.file_type | node.mode),
                node.uid,
                0 if isinstance(node, Directory) else names[node],
                node.target.decode() if isinstance(node, Symlink) else data,
                node.xattrs.get(b"user.k", b""),
                node.mtime_ns if not isinstance(node, Directory) else 0,
            )
    return described


def _described_on_disk(root: Path) -> Description:
    described: Description = {}
    for path in root.rglob("*"):
        status = path.lstat()
        link, regular = path.is_symlink(), stat.S_ISREG(status.st_mode)
        directory = stat.S_ISDIR(status.st_mode)
        xattrs = os.listxattr(path, follow_symlinks=False)
        described[str(path.relative_to(root))] = (
            oct(status.st_mode),
            status.st_uid,
            0 if directory else status.st_nlink,
            str(path.readlink()) if link else path.read_bytes() if regular else b"",
            os.getxattr(path, "user.k") if "user.k" in xattrs else b"",
            0 if directory else status.st_mtime_ns,
        )
    return described
