"""Layers assembled at random from the odd parts of tar headers that were found in the field.

Each odd part is one function that changes a `Header` before it is written. A number seeds all of
it, so that a layer can be made again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from tests.support.tars import END, base256, block

USTAR, GNU, V7 = b"ustar\x0000", b"ustar  \0", bytes(8)
NAME, MODE, UID, GID, SIZE, MTIME, LINK = 0, 100, 108, 116, 124, 136, 157
MAJOR, MINOR, PREFIX = 329, 337, 345
"""The offsets of fields in a header."""

FILE, HARD_LINK, SYMLINK, CHARACTER, BLOCK, FOLDER, FIFO = (b"%d" % n for n in range(7))


@dataclass
class Header:
    """An entry of a tar, before it is written."""

    name: bytes
    typeflag: bytes = FILE
    target: bytes = b""
    """Of a link."""
    data: bytes = b""
    magic: bytes = USTAR
    fields: dict[int, bytes] = field(default_factory=dict)
    """Bytes at offsets of the header, which replace what else is there."""
    records: list[tuple[bytes, bytes]] = field(default_factory=list)
    """Of the pax extended header before it."""
    before: list[bytes] = field(default_factory=list)
    """Whole entries before it."""

    def pack(self) -> bytes:
        extended = [block(b"pax", pax(self.records), b"x")] if self.records else []
        fields = {LINK: self.target[:100], **self.fields}
        entry = block(self.name[:100], self.data, self.typeflag, self.magic, fields)
        return b"".join([*self.before, *extended, entry])


def pax(records: list[tuple[bytes, bytes]]) -> bytes:
    """The records of a pax extended header."""
    return b"".join(_record(b" " + name + b"=" + value + b"\n") for name, value in records)


def _record(body: bytes) -> bytes:
    length = len(body) + 1
    while len(b"%d" % length) + len(body) != length:
        length += 1
    return b"%d" % length + body


# How a name is written.


def with_a_long_name(header: Header, chosen: Random) -> None:
    """More than 100 bytes: by GNU's entry, a record, or the prefix of ustar, star or old Go."""
    if header.typeflag != FILE or b".wh." in header.name:
        return
    parent, slash, last = header.name.rpartition(b"/")
    long = b"n" * 90
    header.name = parent + slash + long + b"/" + last
    way = chosen.choice([by_gnu_entry, by_record, by_prefix])
    way(header, chosen)


def by_gnu_entry(header: Header, chosen: Random) -> None:
    header.magic = GNU
    header.before += [block(b"././@LongLink", header.name + b"\0", b"L", GNU)]
    if header.target:
        header.before += [block(b"././@LongLink", header.target + b"\0", b"K", GNU)]
        header.target = b"short"
    header.name = b"short"


def by_record(header: Header, chosen: Random) -> None:
    header.records += [(b"path", header.name)]
    if header.target:
        header.records += [(b"linkpath", header.target)]
        header.target = chosen.choice([b"", b"short"])
    header.name = b"short"


def by_prefix(header: Header, chosen: Random) -> None:
    """A prefix in ustar with any version, in star's format, or over the times of GNU's."""
    parent, _, last = header.name.rpartition(b"/")
    if not parent or not last:
        return
    header.name, header.fields[PREFIX] = last, parent
    header.magic = chosen.choice([USTAR, b"ustar\0 \0", b"ustar\0\0\0", b"ustar\0\xff1", GNU])
    if header.magic == USTAR and chosen.random() < 0.5 and len(parent) < 131:
        header.fields |= {476: b"14371573000", 488: b"14371573000", 508: b"tar\0"}


def with_dots(header: Header, chosen: Random) -> None:
    header.name = chosen.choice([b"./", b"/", b"../", b"gone/../", b"./gone/.././", b"//"]) + (
        header.name
    )


def twice_named(header: Header, chosen: Random) -> None:
    """By a GNU entry and by a record."""
    header.records += [(b"path", header.name)]
    header.before += [block(b"././@LongLink", header.name + b"\0", b"L", GNU)]
    header.name = b"neither"


def with_empty_records(header: Header, chosen: Random) -> None:
    names = (b"path", b"linkpath", b"size", b"uid", b"gid", b"mtime", b"uname")
    header.records += [(name, b"") for name in chosen.sample(names, 2)]


def with_old_header(header: Header, chosen: Random) -> None:
    header.magic = V7


def with_gnu_header(header: Header, chosen: Random) -> None:
    header.magic = GNU
    header.fields |= chosen.choice([{}, {345: b"14371573000"}, {345: bytes(12), 357: b"\xff" * 12}])


# Numbers.


def with_far_owner(header: Header, chosen: Random) -> None:
    numbers = [-1, -2, 70000, 2097151, 2097152, 4000000000, (1 << 32) - 2, (1 << 32) - 1, 1 << 32]
    for offset, name in ((UID, b"uid"), (GID, b"gid")):
        number = chosen.choice(numbers)
        if chosen.random() < 0.5:
            header.records += [(name, b"%d" % number)]
        else:
            header.fields[offset] = base256(number, 8)


def with_leading_zeros(header: Header, chosen: Random) -> None:
    header.records += [
        (b"size", b"0" * 21 + b"%d" % len(header.data)),
        (b"uid", b"+" * chosen.randint(0, 1) + b"0" * 30 + b"7"),
        (b"mtime", b"0" * 20 + b"1234567890.5"),
    ]


def with_blank_numbers(header: Header, chosen: Random) -> None:
    header.fields |= {
        MODE: chosen.choice([b"   644 \0", b"644\0\0\0\0\0", b"0000644 "]),
        UID: chosen.choice([bytes(8), b" " * 8, b"     12 "]),
        SIZE: b"%11o " % len(header.data),
    }


def with_base256_size(header: Header, chosen: Random) -> None:
    header.fields[SIZE] = base256(len(header.data), 12)


def with_record_size(header: Header, chosen: Random) -> None:
    header.records += [(b"size", b"%d" % len(header.data))]
    header.fields[SIZE] = b"%011o" % 0


def with_odd_time(header: Header, chosen: Random) -> None:
    texts = [b"-1", b"-1.5", b"1.000000001", b"1.9999999999", b"-0.3", b"4294967296", b"+7.", b"3."]
    if chosen.random() < 0.7:
        header.records += [(b"mtime", chosen.choice(texts))]
    else:
        header.fields[MTIME] = base256(chosen.choice([-5, 1 << 33]), 12)


def with_odd_mode(header: Header, chosen: Random) -> None:
    mode = chosen.choice([0, 0o4755, 0o2755, 0o1777, 0o7777, 0o100644, 0o040755, 0o170000, 0o111])
    header.fields[MODE] = b"%07o" % mode


def with_old_type(header: Header, chosen: Random) -> None:
    if header.typeflag == FILE and not header.name.endswith(b"/"):
        header.typeflag = chosen.choice([*[b"\0"] * 7, b"7"])


def folder_as_old_file(header: Header, chosen: Random) -> None:
    if header.typeflag == FOLDER:
        header.typeflag, header.name = b"\0", header.name.rstrip(b"/") + b"/"


def with_claimed_size(header: Header, chosen: Random) -> None:
    """A size where there is no content."""
    if header.typeflag not in (FILE, HARD_LINK):
        header.fields[SIZE] = chosen.choice([b"00000001000", base256(-5, 12)])


def with_xattrs(header: Header, chosen: Random) -> None:
    capability = bytes.fromhex("0100000200040000000000000000000000000000")
    every = [
        (b"security.capability", capability),
        (b"user.k", b"v"),
        (b"user.binary", b"\0\xff\n="),
        (b"user.empty", b""),
    ]
    if header.typeflag in (FILE, FOLDER):
        header.records += [(b"SCHILY.xattr." + k, v) for k, v in chosen.sample(every, 2)]


def with_global_header(header: Header, chosen: Random) -> None:
    if chosen.random() < 0.7:
        return  # seldom, because umoci refuses them
    records = pax([(b"uid", b"99"), (b"path", b"global"), (b"comment", b"c")])
    header.before.insert(0, block(b"pax_global_header", records, b"g"))


def with_other_records(header: Header, chosen: Random) -> None:
    header.records += [
        (b"comment", b"a=b\nc"),
        (b"LIBARCHIVE.creationtime", b"1"),
        (b"atime", b"12.5"),
        (b"ctime", b"-3"),
    ]


# Sparse files.


def sparse(header: Header, chosen: Random) -> None:
    """Holes, in one of the four formats of GNU tar."""
    if header.typeflag != FILE or header.records or header.before or header.fields.get(SIZE):
        return
    runs = sorted(chosen.sample(range(0, 40), 4))
    pairs = [(runs[0], runs[1] - runs[0]), (runs[2], runs[3] - runs[2])][: chosen.randint(0, 2)]
    size = 40 + chosen.randint(0, 3) * 1000
    header.data = bytes(chosen.randrange(256) for _ in range(sum(length for _, length in pairs)))
    chosen.choice([_sparse_gnu, _sparse_0_0, _sparse_0_1, _sparse_1_0])(header, pairs, size)


def _sparse_gnu(header: Header, pairs: list[tuple[int, int]], size: int) -> None:
    header.magic, header.typeflag = GNU, b"S"
    numbers = [number for pair in [*pairs, (size, 0)] for number in pair]
    for place, number in enumerate(numbers):
        header.fields[386 + 12 * place] = b"%011o\0" % number
    header.fields[483] = b"%011o\0" % size


def _sparse_0_0(header: Header, pairs: list[tuple[int, int]], size: int) -> None:
    header.records += [
        (b"GNU.sparse.size", b"%d" % size),
        (b"GNU.sparse.numblocks", b"%d" % len(pairs)),
    ]
    for offset, length in pairs:
        header.records += [
            (b"GNU.sparse.offset", b"%d" % offset),
            (b"GNU.sparse.numbytes", b"%d" % length),
        ]


def _sparse_0_1(header: Header, pairs: list[tuple[int, int]], size: int) -> None:
    header.records += [
        (b"GNU.sparse.size", b"%d" % size),
        (b"GNU.sparse.numblocks", b"%d" % len(pairs)),
        (b"GNU.sparse.map", b",".join(b"%d,%d" % pair for pair in pairs)),
    ]


def _sparse_1_0(header: Header, pairs: list[tuple[int, int]], size: int) -> None:
    header.records += [
        (b"GNU.sparse.major", b"1"),
        (b"GNU.sparse.minor", b"0"),
        (b"GNU.sparse.name", header.name),
        (b"GNU.sparse.realsize", b"%d" % size),
    ]
    header.name = b"GNUSparseFile.1/x"
    lines = [len(pairs), *(number for pair in pairs for number in pair)]
    text = b"".join(b"%d\n" % number for number in lines)
    header.data = text + bytes(-len(text) % 512) + header.data


OddPart = Callable[[Header, Random], None]

ODD_PARTS: tuple[OddPart, ...] = (
    *(with_a_long_name, by_gnu_entry, by_record, by_prefix, with_dots, twice_named),
    *(with_empty_records, with_old_header, with_gnu_header, with_far_owner, with_leading_zeros),
    *(with_blank_numbers, with_base256_size, with_record_size, with_odd_time, with_odd_mode),
    *(with_old_type, folder_as_old_file, with_claimed_size, with_xattrs, with_global_header),
    *(with_other_records, sparse),
)


# What the entries say.

LETTERS = (b"a", b"b", b"c", b"d")


@dataclass
class Known:
    """The paths that a layer most likely finds, so that most layers can be applied."""

    folders: list[bytes] = field(default_factory=lambda: [b""])
    """Symlinks to folders too."""
    files: list[bytes] = field(default_factory=list)

    def new_path(self, chosen: Random) -> bytes:
        parent = chosen.choice(self.folders)
        taken = {*self.folders, *self.files}
        free = [path for path in (_join(parent, name) for name in LETTERS) if path not in taken]
        if free and chosen.random() < 0.85:
            return chosen.choice(free)
        return _join(parent, chosen.choice(LETTERS))

    def forget(self, path: bytes) -> None:
        """Forget the path and all below it."""
        self.folders = [each for each in self.folders if not _is_in(each, path)]
        self.files = [each for each in self.files if not _is_in(each, path)]


def _join(parent: bytes, name: bytes) -> bytes:
    return parent + b"/" + name if parent else name


def _is_in(path: bytes, top: bytes) -> bool:
    return path == top or path.startswith(top + b"/")


def new_file(known: Known, chosen: Random) -> Header:
    path = known.new_path(chosen)
    known.forget(path)
    known.files.append(path)
    data = bytes(chosen.randrange(256) for _ in range(chosen.choice([0, 1, 5, 511, 512, 513])))
    return Header(path, data=data)


def new_folder(known: Known, chosen: Random) -> Header:
    path = known.new_path(chosen)
    if path not in known.folders:
        known.forget(path)
        known.folders.append(path)
    return Header(path + b"/" * chosen.randint(0, 1), FOLDER, fields={MODE: b"0000755"})


def new_symlink(known: Known, chosen: Random) -> Header:
    """Often to a folder, by ways that miss components, climb above the root or go in circles."""
    path = known.new_path(chosen)
    folder = chosen.choice([each for each in known.folders if not _is_in(each, path)])
    up = b"../" * path.count(b"/")
    ways = [
        up + folder,
        b"/" + folder,
        b"../../../" + folder,
        up + b"gone/../" + folder,
        b"/gone/more/../../" + folder,
        b"upandout/../../../../" + folder,
        b"/" + folder + b"/../" + folder,
        b"/" + chosen.choice([*known.files, b"a"]) + b"/../" + folder,
        b"/" + folder + b"/.//.",
        b"nowhere",
        path.rpartition(b"/")[2],
    ]
    known.forget(path)
    target = chosen.choice(ways) or b"."
    if target not in (b"nowhere", path):
        known.folders.append(path)
    return Header(path, SYMLINK, target)


def new_hard_link(known: Known, chosen: Random) -> Header:
    if not known.files:
        return new_file(known, chosen)
    target = chosen.choice(known.files)
    path = known.new_path(chosen)
    if path == target or path in known.folders:
        path = _join(b"", b"link%d" % chosen.randrange(9))
    known.files.append(path)
    spelled = chosen.choice([b"", b"", b"/", b"./", b"../../", b"gone/../"]) + target
    return Header(path, HARD_LINK, spelled)


def new_whiteout(known: Known, chosen: Random) -> Header:
    path = chosen.choice([*known.files, *known.folders[1:], known.new_path(chosen)])
    parent, _, name = path.rpartition(b"/")
    known.forget(path)
    return Header(_join(parent, b".wh." + name))


def new_opaque(known: Known, chosen: Random) -> Header:
    return Header(_join(chosen.choice(known.folders), b".wh..wh..opq"))


def new_special(known: Known, chosen: Random) -> Header:
    path = known.new_path(chosen)
    known.forget(path)
    kind = chosen.choice([CHARACTER, BLOCK, FIFO])
    numbers = {MAJOR: b"%07o" % chosen.choice([1, 8, 259]), MINOR: b"%07o" % chosen.choice([3, 70])}
    return Header(path, kind, fields=numbers if kind != FIFO else {})


def repeated(known: Known, chosen: Random) -> Header:
    """A path that is there already, as a file."""
    path = chosen.choice([*known.files, *known.folders[1:], b"a"])
    known.forget(path)
    known.files.append(path)
    return Header(path, data=b"again")


KINDS: tuple[Callable[[Known, Random], Header], ...] = (
    *[new_file] * 8,
    *[new_folder] * 5,
    *[new_symlink] * 4,
    *[new_hard_link] * 4,
    *[new_whiteout] * 2,
    *(new_opaque, new_special, repeated),
)


WHITEOUTS = (new_whiteout, new_opaque)


@dataclass(frozen=True)
class OddLayers:
    """The layers of an image as tars, and what is odd about them."""

    tars: list[bytes]
    parts: list[str] = field(default_factory=list)
    """The odd parts, as ``LAYER:NAME:FUNCTION``."""
    late_whiteouts: bool = False
    """Whether a whiteout stands behind other entries of its layer."""
    replaced_folders: bool = False
    """Whether a layer has something else behind a folder, by the last part of its name."""
    hard_links: bool = False


def odd_layers(chosen: Random, odd: float = 0.4) -> OddLayers:
    """Make one to four layers; each entry has an odd part with that probability."""
    known, tars, parts = Known(), list[bytes](), list[str]()
    late_whiteouts = replaced_folders = hard_links = False
    for number in range(chosen.randint(1, 4)):
        kinds = chosen.choices(KINDS, k=chosen.randint(1, 8))
        if chosen.random() < 0.8:
            kinds.sort(key=WHITEOUTS.__contains__, reverse=True)
        headers = [kind(known, chosen) for kind in kinds]
        are_whiteouts = [kind in WHITEOUTS for kind in kinds]
        late_whiteouts = late_whiteouts or are_whiteouts != sorted(are_whiteouts, reverse=True)
        folders = set[bytes]()
        for header in headers:
            hard_links = hard_links or header.typeflag == HARD_LINK
            last = header.name.rstrip(b"/").rpartition(b"/")[2]
            if header.typeflag == FOLDER:
                folders.add(last)
            elif last in folders:
                replaced_folders = True
            name = header.name.decode("latin-1")
            while chosen.random() < odd:
                part = chosen.choice(ODD_PARTS)
                part(header, chosen)
                parts.append(f"{number}:{name}:{part.__name__}")
        end = chosen.choice([END, END, END, bytes(512), b"", bytes(10240)])
        tars.append(b"".join(header.pack() for header in headers) + end)
    return OddLayers(tars, parts, late_whiteouts, replaced_folders, hard_links)


STEPS = (b"gone", b"gone", b"etc", b"..", b"..", b".", b"", b"etc/old", b"way", b"sub", b"again")


def layers_through_links(chosen: Random) -> list[bytes]:
    """Two layers, where an entry of the upper one leads through links of the lower one.

    Their targets have components that are missing or no folders, also before ``..``.
    """

    def target() -> bytes:
        steps = b"/".join(chosen.choices(STEPS, k=chosen.randint(1, 5)))
        return chosen.choice([b"", b"/"]) + steps or b"."

    lower = [
        Header(b"etc", FOLDER, fields={MODE: b"0000750"}),
        Header(b"etc/old", data=b"old"),
        Header(b"etc/sub", FOLDER, fields={MODE: b"0000755"}),
        Header(b"etc/sub/old", data=b"older"),
        Header(b"way", SYMLINK, b"/etc"),
        Header(b"again", SYMLINK, target()),
        Header(b"le", SYMLINK, target()),
    ]
    upper = chosen.choice(
        [
            Header(b"le/new", data=b"new"),
            Header(b"le/new/deep", data=b"new"),
            Header(b"le/new", FOLDER, fields={MODE: b"0000700"}),
            Header(b"le/old", SYMLINK, b"le"),
            Header(b"mine", HARD_LINK, b"le/old"),
            Header(b"mine", HARD_LINK, target() + b"/old"),
            Header(b"le/mine", HARD_LINK, b"etc/old"),
            Header(b"le/.wh.old"),
            Header(b"le/.wh.sub"),
            Header(b"le/.wh..wh..opq"),
            Header(b"le", FOLDER, fields={MODE: b"0000700"}),
        ]
    )
    return [b"".join(header.pack() for header in lower) + END, upper.pack() + END]
