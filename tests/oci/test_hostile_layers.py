"""Hostile layers: the cases of containerd's and umoci's own tests, and mutations of real tars.

Each ends in a correct tree or in a CorruptError, soon.
"""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fledge.errors import CorruptError
from fledge.host.settings import Settings
from fledge.oci import layers
from fledge.report import Reporter
from fledge.session import Session
from fledge.store.cache import Cache
from fledge.tree import File, Tree
from fledge.tree.content import Span
from tests.support.bounded import in_a_child
from tests.support.images import opened_image, opened_layer
from tests.support.tars import (
    END,
    Entry,
    block,
    file,
    folder,
    hard_link,
    listing,
    pack,
    span,
    symlink,
)


def applied(tmp_path: Path, *tars: bytes) -> Tree:
    tree = Tree(mtime_ns=0)
    for data in tars:
        layers.apply(tree, span(tmp_path, data))
    return tree


def refused(tmp_path: Path, *tars: bytes, match: str) -> None:
    with pytest.raises(CorruptError, match=match):
        applied(tmp_path, *tars)


ETC = (folder("etc", 0o770), file("/etc/passwd", b"inside"))


@pytest.mark.parametrize(
    ("links", "name"),
    [
        ([symlink("localetc", "/etc")], "/localetc/new"),
        ([folder("dummy"), symlink("localetc", "/dummy/../etc")], "/localetc/new"),
        ([symlink("/dummy/etc", "/etc"), symlink("localetc", "/dummy/etc")], "/localetc/new"),
        ([symlink("/dummy/etc", "/etc"), symlink("localetc", "./dummy/etc")], "/localetc/new"),
        ([symlink("localetc", "../../../../../../../etc")], "/localetc/new"),
        ([symlink("localetc", "upandout/../../../etc")], "/localetc/new"),
        ([symlink("link", "/")], "link/etc/new"),
        ([symlink("link", "/../")], "link/etc/new"),
        ([symlink("link", "/./.././.././../")], "link/etc/new"),
        ([symlink("link", "..")], "link/etc/new"),
        ([symlink("localetc", "gone/../etc")], "localetc/new"),
        ([symlink("localetc", "etc/passwd/../../etc")], "localetc/new"),
        # A link before ".." is followed first, as in Linux.
        ([folder("dummy"), symlink("dummy/a", "../etc/b"), symlink("x", "dummy/a/..")], "x/new"),
        ([], "/../../etc/new"),
        ([], "../../../etc/./new"),
        ([], "etc/../../etc/new"),
    ],
)
def test_paths_end_inside_the_tree(links: list[Entry], name: str, tmp_path: Path) -> None:
    tree = applied(tmp_path, pack(*ETC, *links, file(name, b"x")))
    assert isinstance(tree.get(b"etc/new"), File)
    names = {"etc", "etc/passwd", "etc/new", "dummy", *(link.name.strip("/") for link in links)}
    assert set(listing(tree)) <= names


@pytest.mark.parametrize(
    ("links", "target"),
    [
        ([symlink("breakouts/d1", "../../etc")], "/breakouts/d1/passwd"),
        (
            [folder("downandout"), symlink("breakouts/d1", "../downandout/../../etc")],
            "/breakouts/d1/passwd",
        ),
        ([symlink("localetc", "/etc")], "/localetc/passwd"),
        ([symlink("localetc", "upandout/../../../etc")], "/localetc/passwd"),
        ([symlink("localetc", "gone/../etc")], "localetc/passwd"),
        ([], "../../../../../etc/passwd"),
        ([], "/etc/passwd"),
    ],
)
def test_hard_links_end_inside_the_tree(links: list[Entry], target: str, tmp_path: Path) -> None:
    tree = applied(tmp_path, pack(*ETC, *links, hard_link("mine", target)))
    assert tree.get(b"mine") is tree.get(b"etc/passwd") is not None
    assert not {"gone", "upandout"} & set(listing(tree))


def test_whiteouts_end_inside_the_tree(tmp_path: Path) -> None:
    for target in ("gone/../etc", "upandout/../../../etc", "/etc/passwd/../../etc"):
        lower = pack(*ETC, file("etc/old"), symlink("localetc", target))
        tree = applied(tmp_path, lower, pack(file("localetc/.wh.old")))
        assert set(listing(tree)) == {"etc", "etc/passwd", "localetc"}
        tree = applied(tmp_path, lower, pack(file("localetc/.wh..wh..opq")))
        assert set(listing(tree)) == {"etc", "localetc"}


def test_a_file_replaces_a_symlink_and_does_not_follow_it(tmp_path: Path) -> None:
    tree = applied(tmp_path, pack(*ETC, symlink("x", "/etc/passwd"), file("x", b"mine")))
    assert listing(tree) == {"etc": "dir", "etc/passwd": "6", "x": "4"}


def test_directories_become_links_and_links_directories(tmp_path: Path) -> None:
    tree = applied(
        tmp_path,
        pack(
            *ETC,
            *(folder("d"), file("d/1"), symlink("d", "etc"), file("d/2")),
            *(folder("d"), file("d/3"), file("d"), symlink("d", "d")),
        ),
    )
    assert listing(tree) == {"etc": "dir", "etc/passwd": "6", "etc/2": "0", "d": "-> d"}


def test_the_last_of_duplicate_entries_counts(tmp_path: Path) -> None:
    tree = applied(tmp_path, pack(*(file("x", b"1" * n) for n in range(100))))
    assert listing(tree) == {"x": "99"}


@pytest.mark.parametrize(
    ("entries", "match"),
    [
        ([symlink("a", "b"), symlink("b", "a"), file("a/x")], "too many symlinks"),
        ([symlink("a", "a/a"), file("a/x")], "too many symlinks"),
        ([hard_link("x", "missing")], "does not exist"),
        ([hard_link("x", "etc")], "directory"),
        ([hard_link("x", "/")], "directory"),
        ([hard_link("x", "x")], "does not exist"),
        ([symlink("x", "")], "link target"),
        ([symlink("x", "t" * 4096)], "link target"),
        ([file("/")], "root"),
        ([symlink("..", "etc")], "root"),
        ([file("etc/passwd/x")], "no directory|not a directory"),
        ([file("n" * 256)], "longer than 255"),
        ([file("n/" * 2048)], "longer than 4095"),
        ([file("x", pax={"path": "n" * (10 << 20)})], "cannot have 10485"),
        ([file("x", pax={"path": "a\0b"})], "NUL"),
        ([file("x", pax={"size": "9" * 19})], "ends within"),
        ([file("x", pax={"size": "9" * 5000})], "not a decimal number"),
        ([file("x", pax={"size": "-1"})], "size is negative"),
        ([file("x", pax={"uid": "1,5"})], "not a decimal number"),
        ([hard_link("x", "")], "link target"),
        ([file("x", pax={"mtime": "soon"})], "not a time"),
        ([file("x", pax={"mtime": f"1.{'0' * 41}"})], "not a time"),
        ([file("x", pax={"SCHILY.xattr.user.x": "x" * 65537})], "too long"),
        ([Entry("x", tarfile.CHRTYPE, device=(1 << 12, 0))], "device number"),
        ([Entry("x", b"Z")], "not a known entry type"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_makes_no_tree_is_refused(entries: list[Entry], match: str, tmp_path: Path) -> None:
    refused(tmp_path, pack(*ETC, *entries), match=match)


@pytest.mark.parametrize(
    ("records", "match"),
    [
        ({"size": "5", "map": "0,5,3,5"}, "out of order"),
        ({"size": "5", "map": "0,9"}, "beyond"),
        ({"size": "100", "map": "0,5"}, "does not fit"),
        ({"size": "100", "map": "0,5,7"}, "malformed"),
        ({"size": str(1 << 50), "map": "0,10"}, "too many"),
        ({"size": "10", "map": ",".join(["0"] * (1 << 18))}, "at most 65536 runs of data"),
        ({"size": "10", "map": "0,10", "name": "n" * 256}, "longer than 255"),
        ({"major": "1", "minor": "0", "realsize": "9"}, "no decimal|no sparse map|within"),
    ],
)
@pytest.mark.slow
def test_sparse_maps_must_make_sense(records: dict[str, str], match: str, tmp_path: Path) -> None:
    pax = {f"GNU.sparse.{key}": value for key, value in records.items()}
    refused(tmp_path, pack(file("x", b"0123456789", pax=pax)), match=match)


TOO_MUCH = "names and metadata up to here take more than .* of memory"


def limit_memory(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr("fledge.tree.budget.MIN_MEMORY", size)


def test_entries_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A header grants a part of what its entry costs, and a content all of it."""
    limit_memory(monkeypatch, 20_000)
    refused(tmp_path, pack(*(file(f"f{n}") for n in range(30))), match=f"'f2.': {TOO_MUCH}")
    full = pack(*(file(f"f{n}", bytes(2000)) for n in range(30)))
    assert len(listing(applied(tmp_path, full))) == 30


def test_what_a_layer_may_cost_depends_on_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while it is unpacked, with the files that cost much at its begin."""
    monkeypatch.setattr("fledge.tree.growth.STRETCH", 0)
    limit_memory(monkeypatch, 50_000)
    session = Session(Settings(), Cache(tmp_path / "cache"), Reporter())
    files = [file(f"f{n}") for n in range(200)]
    small, large = (pack(*files, file("end", bytes(size))) for size in (1 << 10, 1 << 20))
    layers.unpack(opened_image(opened_layer(tmp_path, large)), Tree(0), session)
    with pytest.raises(CorruptError, match=f"^layer 1 of 1 of oci:test: .*{TOO_MUCH}"):
        layers.unpack(opened_image(opened_layer(tmp_path, small)), Tree(0), session)


@pytest.mark.parametrize(
    "entry",
    [
        pytest.param(folder("d"), id="folder"),
        pytest.param(symlink("l", "t" * 4000), id="target"),
        pytest.param(file(("p" * 250 + "/") * 6 + "p"), id="path"),
        pytest.param(file("x", pax={f"SCHILY.xattr.user.{n}": "" for n in range(20)}), id="xattrs"),
        pytest.param(file("x", pax={"SCHILY.xattr.user.x": "x" * 9000}), id="xattr"),
    ],
)
def test_entries_that_cost_more(
    entry: Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_memory(monkeypatch, 40_000)
    applied(tmp_path, pack(*[file("x")] * 30))
    refused(tmp_path, pack(*[entry] * 30), match=TOO_MUCH)


def test_paths_below_a_long_symlink_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_memory(monkeypatch, 100_000)
    session = Session(Settings(), Cache(tmp_path / "cache"), Reporter())
    files = [file(f"l/{n}") for n in range(50)]
    short, long = (
        opened_image(opened_layer(tmp_path, pack(symlink("l", target), *files)))
        for target in ("d", "/".join(["d" * 250] * 8))
    )
    layers.unpack(short, Tree(0), session)
    with pytest.raises(CorruptError, match=f"^oci:test: {TOO_MUCH}"):
        layers.unpack(long, Tree(0), session)


@pytest.mark.slow
def test_records_of_extended_headers_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A MiB has room for 200,000 of them, which take a second to parse."""
    tiny = b"5 a=\n"
    at_most = [block(b"pax", tiny * 16384, b"x") + block(b"f")] * 3
    assert listing(applied(tmp_path, b"".join(at_most) + END)) == {"f": "0"}
    refused(tmp_path, block(b"pax", tiny * 16385, b"x") + block(b"f") + END, match="16384 records")
    limit_memory(monkeypatch, 3_000_000)
    refused(tmp_path, b"".join(at_most) + END, match=TOO_MUCH)


@pytest.mark.parametrize(
    "data", [b"5 a=\n5 a=", b"0 a=\n", b"-5 a=\n", b"+6 a=\n", b"1 =\n", b"=\n"]
)
def test_records_must_make_sense(data: bytes, tmp_path: Path) -> None:
    entry = block(b"pax", data, b"x") + block(b"f")
    refused(tmp_path, entry + END, match="extended header is malformed")


def test_symlinks_that_lead_far_do_not_cost_much(tmp_path: Path) -> None:
    """Each link is 2,000 names long and leads to the next; a path may have 40."""
    links = [symlink(f"l{n}", "d/../" * 800 + f"l{n + 1}") for n in range(39)]
    refused(tmp_path, pack(folder("d"), *links, file("l0/x")), match="too long")


@pytest.mark.parametrize(
    ("target", "name"),
    [
        pytest.param("d/../" * 790, "x", id="many names"),
        pytest.param("d/../" * 790, ".wh.x", id="many names of a whiteout"),
        pytest.param("/a" + "/d" * 1900, ".wh.x", id="many names that are never reached"),
    ],
)
def test_parents_that_lead_far_do_not_cost_much(
    target: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alternating, because a parent that equals the previous one costs nothing."""
    monkeypatch.setattr("fledge.tree.nodes.MAX_SOURCE_STEPS", 100_000)
    links = [folder("d"), file("a"), symlink("l", target), symlink("m", target)]
    entries = [file(f"{parent}/{name}") for parent in ("l", "m") * 100]
    refused(tmp_path, pack(*links, *entries), match="more than 100000 names")


def test_parents_that_nothing_describes_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path of 4 KiB can lead through 2,000 of them."""
    limit_memory(monkeypatch, 10 << 20)
    entries = [file(f"{number}{'/d' * 500}") for number in range(20)]
    refused(tmp_path, pack(*entries), match=TOO_MUCH)
    assert listing(applied(tmp_path, pack(*entries[:5])))


@pytest.mark.slow
def test_hard_links_that_each_add_an_attribute_do_not_cost_much(tmp_path: Path) -> None:
    """A copy of all attributes for each link would take minutes."""
    links = [
        Entry(f"{n}", tarfile.LNKTYPE, linkname="file", pax={f"SCHILY.xattr.user.{n}": "1"})
        for n in range(40_000)
    ]
    data = pack(file("file"), *links)

    def count() -> int:
        node = applied(tmp_path, data).get(b"file")
        assert node
        return len(node.xattrs)

    assert in_a_child(count, seconds=20)[0] == 40_000


def test_attributes_of_a_hard_link_stay_in_their_layer(tmp_path: Path) -> None:
    """A layer that is listed twice is parsed once, but its nodes are not shared."""
    session = Session(Settings(), Cache(tmp_path / "cache"), Reporter())
    plain = opened_layer(tmp_path, pack(file("file")))
    link = Entry("link", tarfile.LNKTYPE, linkname="file", pax={"SCHILY.xattr.user.a": "1"})
    tree = Tree(0)
    layers.unpack(opened_image(plain, opened_layer(tmp_path, pack(link)), plain), tree, session)
    old, new = tree.get(b"link"), tree.get(b"file")
    assert old and new
    assert old.xattrs == {b"user.a": b"1"}
    assert not new.xattrs


def test_layers_share_what_they_may_cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A manifest can list one layer thousands of times, and many that differ little."""
    limit_memory(monkeypatch, 600_000)
    session = Session(Settings(), Cache(tmp_path / "cache"), Reporter())
    flat = opened_layer(tmp_path, pack(*(file(f"{n}") for n in range(200))))
    deep = [opened_layer(tmp_path, pack(file(f"d{n}{'/d' * 100}"))) for n in range(4)]
    layers.unpack(opened_image(flat, deep[0]), Tree(0), session)
    for hostile in ([flat] * 4, deep):
        with pytest.raises(CorruptError, match=rf"layer \d of 4 .*{TOO_MUCH}"):
            layers.unpack(opened_image(*hostile), Tree(0), session)


def test_layers_that_are_listed_again_do_not_multiply_their_files(tmp_path: Path) -> None:
    """Each time the symlink leads elsewhere."""
    session = Session(Settings(), Cache(tmp_path / "cache"), Reporter())
    content = opened_layer(tmp_path, pack(file("l/x", bytes(99_000))))
    links = [opened_layer(tmp_path, pack(symlink("l", f"d{n}"))) for n in range(2)]
    layers.unpack(opened_image(links[0], content, content), Tree(0), session)
    with pytest.raises(CorruptError, match="lists layers several times"):
        layers.unpack(opened_image(links[0], content, links[1], content), Tree(0), session)


def test_layers_share_the_steps_of_their_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fledge.tree.nodes.MAX_SOURCE_STEPS", 2_000)
    session = Session(Settings(), Cache(tmp_path / "cache"), Reporter())
    far = [folder("d"), symlink("l", "d/../" * 700), file("l/x")]
    layers_ = [opened_layer(tmp_path, pack(*far, file(f"{n}"))) for n in range(2)]
    layers.unpack(opened_image(layers_[0]), Tree(0), session)
    with pytest.raises(CorruptError, match=r"layer 2 of 2 .*more than 2000 names"):
        layers.unpack(opened_image(*layers_), Tree(0), session)


def test_many_entries_in_changing_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fledge.tree.nodes.MAX_SOURCE_STEPS", 20_000)
    entries = [file(f"{'ab'[n % 2]}{'/d' * 15}/{n}") for n in range(1000)]
    assert len(listing(applied(tmp_path, pack(*entries)))) == 2 * 16 + 1000


@pytest.mark.slow
def test_whiteouts_again_and_again_do_not_cost_much(tmp_path: Path) -> None:
    """Each would visit 3,000 files without a record of what is empty below."""
    files = [file(f"d/{n}") for n in range(3000)]
    opaque = [file("d/.wh..wh..opq"), file(".wh.d")] * 1500
    tree = applied(tmp_path, pack(*files, *opaque))
    assert len(listing(tree)) == 3001


def test_negative_numbers(tmp_path: Path) -> None:
    data = bytearray(pack(file("x", b"x"), tar_format=tarfile.GNU_FORMAT))
    data[124:136] = b"\xff" * 12
    data[148:156] = b"%06o\0 " % (sum(data[:148]) + sum(data[156:512]) + 8 * 32)
    refused(tmp_path, bytes(data), match="negative")


SEEDS = [
    pack(
        *ETC,
        symlink("l", "etc"),
        hard_link("l/h", "etc/passwd"),
        file("l/.wh.x"),
        file("é" * 120, b"x" * 600, mtime=-1, uid=1 << 30),
        file(
            "s",
            b"2\n0\n1\n5\n1\n".ljust(512, b"\0") + b"ab",
            pax={"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9"},
        ),
        Entry("dev", tarfile.CHRTYPE, device=(1, 3)),
        tar_format=tar_format,
    )
    for tar_format in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)
]


@pytest.mark.slow
@given(data=st.data())
@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_mutation_gives_a_tree_or_a_corrupt_error(data: st.DataObject, tmp_path: Path) -> None:
    mutated = bytearray(data.draw(st.sampled_from(SEEDS)))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(mutated) - 1))
        piece = data.draw(st.binary(min_size=1, max_size=8) | st.sampled_from([b"7777", b"/../"]))
        mutated[place : place + len(piece)] = piece
        if data.draw(st.booleans()):
            block = place - place % 512
            header = mutated[block : block + 512].ljust(512, b"\0")
            header[148:156] = b" " * 8
            mutated[block + 148 : block + 156] = b"%06o\0 " % sum(header)
    path = tmp_path / "mutated.tar"
    path.write_bytes(mutated[: data.draw(st.integers(1, len(mutated)))])
    tree = Tree(mtime_ns=0)
    try:
        layers.apply(tree, Span(path, 0, path.stat().st_size))
    except CorruptError:
        return
    for name, _ in tree.walk():
        assert not {b"", b".", b".."} & set(name.split(b"/")) or not name
