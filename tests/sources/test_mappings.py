"""Mapped files: their paths and permissions in the artifact."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import permutations
from pathlib import Path
from stat import S_IFCHR, S_IFREG

import pytest

from fledge.errors import ConfigError, CorruptError
from fledge.ext4.format import Ext4
from fledge.project import config
from fledge.sources import mappings
from fledge.sources.mappings import FileMapping, Placement
from fledge.tree import CharDevice, Directory, File, Node, Symlink, Tree
from fledge.tree.content import HASH_SIZE, HOLE_SIZE, Blob, Sparse, read_content
from fledge.tree.digest import Digest
from tests.support import disks, project
from tests.support.rights import without_rights
from tests.support.trees import describe

MTIME = 7


def scan(
    folder: Path, lines: dict[str, str]
) -> tuple[list[Placement], list[tuple[FileMapping, str]]]:
    return mappings.scan(FileMapping(folder / key, value.encode()) for key, value in lines.items())


def problems(folder: Path, lines: dict[str, str]) -> list[tuple[str, str]]:
    """Return the problems by source as given."""
    found = scan(folder, lines)[1]
    return [(str(mapping.source.relative_to(folder)), problem) for mapping, problem in found]


def place(folder: Path, lines: dict[str, str], tree: Tree | None = None) -> Tree:
    tree = tree or Tree(mtime_ns=MTIME)
    placements, wrong = scan(folder, lines)
    assert wrong == []
    mappings.place(tree, placements, mappings.hard_links(placements))
    return tree


def tree_of(nodes: dict[bytes, Node]) -> Tree:
    tree = Tree(mtime_ns=MTIME)
    for path, node in nodes.items():
        tree.add(path, node)
    return tree


def held(tree: Tree) -> dict[bytes, object]:
    """Return the contents of files and targets of symlinks, by path."""
    return {row.path: row.data for row in describe(tree) if row.kind != "Directory"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    project.write(tmp_path, "app", b"app", executable=True)
    project.write(tmp_path, "conf", b"conf")
    project.write(tmp_path, "site/index.html", b"index")
    project.write(tmp_path, "site/cgi/run", b"run", executable=True)
    (tmp_path / "site/empty").mkdir(mode=0o700)
    (tmp_path / "site/home").symlink_to("index.html")
    (tmp_path / "site/cgi/up").symlink_to("..", target_is_directory=True)
    (tmp_path / "site/gone").symlink_to("/no/such/file")
    return tmp_path


def test_files_and_a_folder(folder: Path) -> None:
    tree = place(folder, {"app": "/usr/bin/app", "conf": "/etc/", "site": "/var/www"})
    assert [row[1:3] + row[7:8] for row in describe(tree)] == [
        ("Directory", 0o755, None),
        ("Directory", 0o755, None),
        ("File", 0o644, b"conf"),
        ("Directory", 0o755, None),
        ("Directory", 0o755, None),
        ("File", 0o755, b"app"),
        ("Directory", 0o755, None),
        ("Directory", 0o755, None),
        ("Directory", 0o755, None),
        ("File", 0o755, b"run"),
        ("Symlink", 0o777, b".."),
        ("Directory", 0o755, None),
        ("Symlink", 0o777, b"/no/such/file"),
        ("Symlink", 0o777, b"index.html"),
        ("File", 0o644, b"index"),
    ]
    assert [path for path, _ in tree.walk()] == [
        *(b"", b"etc", b"etc/conf", b"usr", b"usr/bin", b"usr/bin/app", b"var", b"var/www"),
        *(b"var/www/cgi", b"var/www/cgi/run", b"var/www/cgi/up", b"var/www/empty"),
        *(b"var/www/gone", b"var/www/home", b"var/www/index.html"),
    ]
    rows = describe(tree)
    assert {(row.uid, row.gid, row.mtime_ns) for row in rows} == {(0, 0, MTIME)}


def test_contents_come_with_their_digests(folder: Path) -> None:
    tree = Tree(mtime_ns=MTIME)
    spans = mappings.place(tree, scan(folder, {"site": "/", "app": "/zzz"})[0], {})
    assert [span.path.name for span in spans] == ["run", "index.html", "app"]
    assert all(span.digest for span in spans)


@pytest.mark.parametrize(
    ("destination", "path"),
    [
        ("/a", b"a"),
        ("/a/", b"a/conf"),
        ("/", b"conf"),
        ("/a//./b/", b"a/b/conf"),
        ("/a/.", b"a"),
        ("/größe", "größe".encode()),
        ("/..a", b"..a"),
    ],
)
def test_where_a_file_goes(folder: Path, destination: str, path: bytes) -> None:
    assert held(place(folder, {"conf": destination})) == {path: b"conf"}


@pytest.mark.parametrize("source", ["site", "site/", "./site/.", "site/../site"])
@pytest.mark.parametrize(
    ("destination", "path"), [("/", b""), ("/a", b"a/"), ("/a/", b"a/"), ("/a/./b//", b"a/b/")]
)
def test_where_a_folder_goes(folder: Path, source: str, destination: str, path: bytes) -> None:
    assert held(place(folder, {source: destination})) == {
        path + b"index.html": b"index",
        path + b"cgi/run": b"run",
        path + b"cgi/up": b"..",
        path + b"home": b"index.html",
        path + b"gone": b"/no/such/file",
    }


@pytest.mark.parametrize(
    ("destination", "problem"),
    [
        ("", 'must be absolute; write "/etc/app.conf"'),
        ("etc/x", 'must be absolute; write "/etc/x"'),
        ("./x", 'must be absolute; write "/x"'),
        ("~/x", "must be absolute, and ~ is not expanded"),
        ("$HOME/x", "must be absolute, and $HOME is not expanded"),
        ("\\etc\\x", "must be absolute, and folders are separated by /"),
        ("..", "must be absolute"),
        ("/..", "must not contain .."),
        ("/a/../b", "must not contain .."),
        ("/a/..", "must not contain .."),
        ("/a\0b", "must not contain a NUL"),
        ("/a/" + "n" * 256, "longer than 255 bytes"),
        ("/" + "ü" * 128 + "/a", "longer than 255 bytes"),
    ],
)
def test_bad_destination(destination: str, problem: str) -> None:
    assert problem in (mappings.destination_problem(destination) or "")


@pytest.mark.parametrize("destination", ["/", "/a", "/a/", "/a..b/...", "/" + "n" * 255, "/ü\n"])
def test_good_destination(destination: str) -> None:
    assert mappings.destination_problem(destination) is None


def test_permissions(folder: Path) -> None:
    executable = {
        f"{path}/{below}"
        for path in (
            *("/bin", "/sbin", "/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin"),
            *("/opt/bin", "/opt/sbin", "/lib", "/lib64", "/usr/lib", "/usr/lib64"),
            *("/usr/local/lib", "/usr/local/lib64"),
        )
        for below in ("", "x", "deep/er/x")
    }
    plain = {
        *("/x", "/etc/bin/x", "/opt/x", "/opt/lib/x", "/lib32/x", "/libx", "/usr/x"),
        *("/usr/libexec/x", "/binary/x", "/usr/local/libexec/x", "/usr/bin-old/x"),
    }
    for source, mode in (("app", 0o755), ("conf", 0o644)):
        everywhere = executable | plain
        placements, wrong = mappings.scan(
            FileMapping(folder / source, destination.encode()) for destination in everywhere
        )
        assert wrong == []
        assert {
            placement.path.decode().removesuffix(source): placement.mode for placement in placements
        } == {**dict.fromkeys(executable, 0o755), **dict.fromkeys(plain, mode)}


def test_permissions_in_a_folder_onto_the_root(folder: Path) -> None:
    project.write(folder, "root/usr/bin/tool", b"")
    project.write(folder, "root/etc/conf", b"")
    placements, _ = scan(folder, {"root": "/"})
    modes = {p.path: p.mode for p in placements if p.file_type == S_IFREG}
    assert modes == {b"/usr/bin/tool": 0o755, b"/etc/conf": 0o644}


@pytest.mark.parametrize(
    ("source", "mode"), [(0o500, 0o755), (0o401, 0o755), (0o4755, 0o755), (0o666, 0o644)]
)
def test_any_executable_bit_counts_and_no_other(folder: Path, source: int, mode: int) -> None:
    (folder / "conf").chmod(source)
    [placement], _ = scan(folder, {"conf": "/x"})
    assert placement.mode == mode


def test_hard_links_stay_hard_links(folder: Path) -> None:
    os.link(folder / "conf", folder / "site/linked")
    os.link(folder / "conf", folder / "site/cgi/linked")
    os.link(folder / "app", folder / "site/outside")
    tree = place(folder, {"conf": "/etc/", "site": "/var/www", "site/cgi": "/usr/bin"})
    first = {row.path: row.same_as for row in describe(tree)}
    for path in (b"var/www/linked", b"var/www/cgi/linked"):
        assert first[path] == b"etc/conf"
    # In /usr/bin it has another mode.
    assert first[b"usr/bin/linked"] == b"usr/bin/linked"
    assert first[b"var/www/outside"] == b"var/www/outside"


def test_provenance_tells_hard_links_from_copies(folder: Path) -> None:
    def digest() -> Digest:
        placements = scan(folder, {"site": "/var/www"})[0]
        return mappings.layout_digest(placements, mappings.hard_links(placements))

    (folder / "site/again").write_bytes(b"index")
    before = digest()
    (folder / "site/again").unlink()
    os.link(folder / "site/index.html", folder / "site/again")
    assert digest() != before


@pytest.mark.parametrize("sparse", [False, True])
def test_long_zeros_become_holes(folder: Path, sparse: bool) -> None:
    """They depend on the content, not on the holes that the file has on this machine."""
    hole, size = HASH_SIZE + 3 * HOLE_SIZE, 3 * HASH_SIZE
    data = bytearray(size)
    data[:4], data[hole : hole + HOLE_SIZE + 1] = b"head", b"x" * (HOLE_SIZE + 1)
    with (folder / "disk").open("wb") as file:
        if sparse:
            file.truncate(size)
            for start, stop in ((0, 4), (hole, hole + HOLE_SIZE + 1)):
                file.seek(start)
                file.write(data[start:stop])
        else:
            file.write(data)
    node = place(folder, {"disk": "/disk"}).get(b"disk")
    assert isinstance(node, File)
    assert isinstance(node.content, Sparse)
    assert node.content.extents == ((0, 0, HOLE_SIZE), (hole, hole, 2 * HOLE_SIZE))
    assert node.content.file_digest == Digest.of(bytes(data))
    assert b"".join(read_content(node.content)) == data
    (folder / "disk").write_bytes(data.replace(b"head", b"tail"))
    with pytest.raises(CorruptError, match="changed while it was read"):
        list(read_content(node.content))
    with pytest.raises(CorruptError, match="changed while it was read"):
        disks.write(place(folder, {}, tree_of({b"disk": node})), folder / "image", Ext4())


def test_zeros_that_are_no_hole(folder: Path) -> None:
    for data in (bytes(HOLE_SIZE - 1) + b"x", b"x" + bytes(HOLE_SIZE - 1), b""):
        (folder / "disk").write_bytes(data)
        node = place(folder, {"disk": "/disk"}).get(b"disk")
        assert isinstance(node, File)
        assert isinstance(node.content, Blob)


@pytest.mark.real
def test_what_is_not_kept_is_told(folder: Path, fledge: project.Fledge) -> None:
    project.make(folder, project.LOCAL_AGENT, '[mappings]\n"site" = "/site"\n', files={})
    project.write(folder, "kestrel", project.program())
    assert "capabilities" not in fledge("build").err
    for name in ("site/cgi/run", "site/index.html"):
        subprocess.run(["setcap", "cap_net_raw+ep", folder / name], check=True)
    done = fledge("build")
    assert done.code == 0, done.err
    words = "the mapping of site/cgi/run and 1 more keeps no capabilities and access control lists"
    assert words in " ".join(done.err.split())


def test_source_that_is_a_symlink_is_followed(folder: Path) -> None:
    (folder / "to-app").symlink_to("app")
    (folder / "to-site").symlink_to(folder / "site")
    tree = place(folder, {"to-app": "/opt/", "to-site": "/www"})
    app = tree.get(b"/opt/to-app")
    assert isinstance(app, File) and app.mode == 0o755
    assert isinstance(tree.get(b"/www"), Directory)
    assert isinstance(tree.get(b"/www/index.html"), File)


def test_names_that_are_not_utf8(folder: Path) -> None:
    name = b"caf\xe9\n\x1b[m"
    project.write(folder, os.fsdecode(b"odd/" + name), b"data")
    assert held(place(folder, {"odd": "/x"})) == {b"x/" + name: b"data"}


@pytest.mark.parametrize(
    "lines",
    [
        {"app": "/usr/bin/app", "conf": "/usr/conf", "site": "/", "site/cgi": "/cgi2"},
        {"app": "/x", "conf": "/x", "site": "/x", "site/home": "/x/y"},
        {"app": "/index.html", "conf": "/cgi/run/x", "site": "/", "site/empty": "/home"},
        {"gone": "/a", "also-gone": "/a", "conf": "/a/b", "/dev/null": "/a"},
    ],
)
def test_order_makes_no_difference(folder: Path, lines: dict[str, str]) -> None:
    expected = scan(folder, lines)
    for order in permutations(lines.items()):
        assert scan(folder, dict(order)) == expected


def test_folders_that_overlap_merge(folder: Path) -> None:
    project.write(folder, "more/cgi/other", b"other")
    tree = place(folder, {"site": "/www", "more": "/www", "conf": "/www/cgi/"})
    cgi = tree.get(b"/www/cgi")
    assert isinstance(cgi, Directory)
    assert sorted(cgi.children) == [b"conf", b"other", b"run", b"up"]


@pytest.mark.parametrize(
    ("lines", "source", "problem"),
    [
        ({"app": "/x", "conf": "/x"}, "conf", "/app is mapped to the same path"),
        ({"app": "/x", "conf": "//x/."}, "app", "/conf is mapped to the same path"),
        ({"app": "/conf", "conf": "/"}, "app", "/conf is mapped to the same path"),
        ({"app": "/index.html", "site": "/"}, "app", "/site/index.html is mapped to the same path"),
        ({"app": "/cgi", "site": "/"}, "app", "/site/cgi is mapped to the same path"),
        (
            {"site/empty": "/home", "site": "/"},
            "site/empty",
            "/site/home is mapped to the same path",
        ),
        (
            {"app": "/x", "conf": "/x/y/z"},
            "conf",
            "/app is a file and is mapped to a parent of it",
        ),
        (
            {"conf": "/index.html/x", "site": "/"},
            "conf",
            "/site/index.html is a file and is mapped to a parent of it",
        ),
    ],
)
def test_collisions(folder: Path, lines: dict[str, str], source: str, problem: str) -> None:
    [(found, text)] = problems(folder, lines)
    assert found == source
    assert text == f"{folder}{problem}"


@contextmanager
def chdir(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def make_socket(path: Path) -> None:
    # The address of a socket is limited to 108 bytes, which its folder can exceed.
    with socket.socket(socket.AF_UNIX) as unix, chdir(path.parent):
        unix.bind(path.name)


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda path: None, ": no such file or folder"),
        (lambda path: path.symlink_to("gone"), ": no such file or folder"),
        (lambda path: path.symlink_to("odd"), ": too many levels of symbolic links"),
        (lambda path: path.symlink_to("conf/x"), ": not a directory"),
        (lambda path: path.symlink_to("/dev/null"), " is a device; only files and folders"),
        (os.mkfifo, " is a fifo; only files and folders"),
        (make_socket, " is a socket; only files and folders"),
    ],
    ids=["missing", "dangling", "loop", "below a file", "device", "fifo", "socket"],
)
def test_bad_source(folder: Path, make: Callable[[Path], None], problem: str) -> None:
    make(folder / "odd")
    [(source, text)] = problems(folder, {"odd": "/x", "conf": "/y"})
    assert source == "odd"
    assert text.startswith(f"{folder}/odd{problem}")


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (os.mkfifo, "fifo"),
        (make_socket, "socket"),
        pytest.param(
            lambda path: os.mknod(path, S_IFCHR | 0o600, os.makedev(1, 3)),
            "device",
            marks=pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a device"),
        ),
    ],
)
def test_bad_file_in_a_folder(folder: Path, make: Callable[[Path], None], kind: str) -> None:
    make(folder / "site/cgi/odd")
    [(source, text)] = problems(folder, {"site": "/x"})
    assert source == "site"
    assert text.startswith(f"{folder}/site/cgi/odd is a {kind}; ")


@pytest.mark.parametrize(
    ("hidden", "mode", "problem"),
    [
        ("conf", 0o333, "conf cannot be read; change its permissions"),
        ("site/index.html", 0, "site/index.html cannot be read; change its permissions"),
        ("site", 0, "site: permission denied"),
        ("site/empty", 0o333, "site/empty: permission denied"),
        ("site/empty", 0o444, ""),
        ("site/cgi", 0o444, "site/cgi/run: permission denied"),
    ],
)
def test_unreadable(
    folder: Path, monkeypatch: pytest.MonkeyPatch, hidden: str, mode: int, problem: str
) -> None:
    monkeypatch.chdir(folder)
    for path in (".", "site", "site/cgi", "site/empty"):
        (folder / path).chmod(0o755)
    (folder / hidden).chmod(mode)
    with without_rights():
        found = problems(Path(), {"conf": "/conf", "site": "/site"})
    (folder / hidden).chmod(0o700)
    assert [text for _, text in found][:1] == ([problem] if problem else [])


@pytest.mark.parametrize(
    ("lines", "at"),
    [
        ({"app": "/bin/app"}, b"usr/bin/app"),
        ({"app": "/bin/"}, b"usr/bin/app"),
        ({"app": "/alt/app"}, b"usr/bin/app"),
        ({"app": "/bin/new/app"}, b"usr/bin/new/app"),
        ({"app": "/up/etc/app"}, b"etc/app"),
        ({"app": "/var/run/app"}, b"run/app"),
        ({"site/cgi": "/bin"}, b"usr/bin/run"),
        ({"site/cgi": "/alt/new"}, b"usr/bin/new/run"),
        ({"site/cgi": "/var/run"}, b"run/run"),
        ({"site/cgi": "/var/run", "app": "/run/"}, b"run/run"),
    ],
)
def test_symlinks_of_the_tree_lead_on(folder: Path, lines: dict[str, str], at: bytes) -> None:
    links = {b"bin": b"usr/bin", b"alt": b"/bin", b"up": b"../..", b"var/run": b"/run"}
    tree = tree_of({path: Symlink(target=target) for path, target in links.items()})
    place(folder, lines, tree)
    assert at in held(tree)
    assert links.items() <= held(tree).items()


@pytest.mark.parametrize("destination", ["/srv", "/to-srv"])
def test_folder_of_the_tree_keeps_what_it_is(folder: Path, destination: str) -> None:
    srv = Directory(mode=0o2750, uid=33, gid=44, mtime_ns=55, xattrs={b"user.a": b"b"})
    kept = Symlink(target=b"x")
    tree = tree_of({b"srv": srv, b"srv/kept": kept, b"to-srv": Symlink(target=b"srv")})
    place(folder, {"site": destination}, tree)
    assert tree.get(b"srv") is srv
    assert (srv.mode, srv.uid, srv.gid, srv.mtime_ns) == (0o2750, 33, 44, 55)
    assert srv.xattrs == {b"user.a": b"b"}
    assert tree.get(b"srv/kept") is kept
    assert isinstance(tree.get(b"srv/index.html"), File)


@pytest.mark.parametrize(
    "old",
    [
        File(mode=0o4711, uid=5, content=b"old"),
        Symlink(target=b"other"),
        Symlink(target=b"loop"),
        CharDevice(mode=0o600, major=1, minor=3),
    ],
    ids=["file", "symlink", "loop", "device"],
)
def test_file_replaces_what_is_no_folder(folder: Path, old: Node) -> None:
    other = File(mode=0o600, content=b"other")
    tree = tree_of({b"other": other, b"loop": old})
    place(folder, {"conf": "/loop"}, tree)
    assert held(tree) == {b"other": b"other", b"loop": b"conf"}
    new = tree.get(b"loop")
    assert new and (new.mode, new.uid) == (0o644, 0)


@pytest.mark.parametrize(
    ("lines", "source", "problem"),
    [
        ({"conf": "/usr/home"}, "conf", "cannot be mapped to /usr/home: a directory exists there"),
        ({"site": "/usr"}, "site/home", "cannot be mapped to /usr/home: a directory exists there"),
        ({"conf": "/file/x"}, "conf", "cannot be mapped to /file/x: /file is not a directory"),
        ({"conf": "/file/x/y"}, "conf", "cannot be mapped to /file/x/y: file on the way to"),
        ({"site/empty": "/file"}, "site/empty", "/file is not a directory"),
        ({"site/empty": "/to-file"}, "site/empty", "/to-file is not a directory"),
        ({"conf": "/loop/x"}, "conf", "cannot be mapped to /loop/x: too many symlinks"),
        ({"site/empty": "/loop"}, "site/empty", "cannot be mapped to /loop: too many symlinks"),
        ({"app": "/bin/x", "conf": "/usr/bin/x"}, "conf", "/app is mapped to the same path"),
        ({"app": "/bin/x", "conf": "/usr/bin/x/y"}, "conf", "x is not a directory"),
        ({"app": "/bin/x/y", "conf": "/usr/bin/x"}, "conf", "a directory exists there"),
        ({"app": "/bin/home", "site": "/usr/bin"}, "site/home", "is mapped to the same path"),
        ({"app": "/bin/empty", "site": "/usr/bin"}, "site/empty", "/empty is not a directory"),
    ],
)
def test_collisions_in_the_tree(
    folder: Path, lines: dict[str, str], source: str, problem: str
) -> None:
    tree = tree_of(
        {
            b"usr/bin": Directory(mode=0o755),
            b"usr/home": Directory(mode=0o755),
            b"bin": Symlink(target=b"usr/bin"),
            b"file": File(mode=0o644, content=b""),
            b"to-file": Symlink(target=b"file"),
            b"loop": Symlink(target=b"loop"),
        }
    )
    with pytest.raises(ConfigError) as caught:
        place(folder, lines, tree)
    assert caught.value.message.startswith(f"[mappings] {folder}")
    assert f"{folder}/{source} " in caught.value.message
    assert problem in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("links", "destination", "at"),
    [
        ({"current": "v2"}, "/current/conf", b"v2/conf"),
        ({"current": "/opt/v2"}, "/current/", b"opt/v2/conf"),
        ({"a": "b", "b": "c"}, "/a/conf", b"c/conf"),
        ({"b": "a", "a": "c"}, "/b/conf", b"c/conf"),
        ({"v1/a": "../b", "b": "c"}, "/v1/a/conf", b"c/conf"),
    ],
)
def test_symlink_of_one_mapping_is_a_parent_of_another(
    folder: Path, links: dict[str, str], destination: str, at: bytes
) -> None:
    for name, target in links.items():
        (folder / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "root" / name).symlink_to(target)
    tree = place(folder, {"root": "/", "conf": destination})
    assert held(tree) == {
        at: b"conf",
        **{name.encode(): target.encode() for name, target in links.items()},
    }


def test_symlink_of_one_mapping_leads_another_to_the_same_place(folder: Path) -> None:
    (folder / "site/www").symlink_to("/")
    with pytest.raises(ConfigError, match="is mapped to the same path"):
        place(folder, {"site": "/", "conf": "/www/index.html"})


@pytest.mark.parametrize("gone", ["conf", "site/home"])
def test_source_that_goes_after_the_scan(folder: Path, gone: str) -> None:
    placements, _ = scan(folder, {"conf": "/conf", "site": "/site"})
    (folder / gone).unlink()
    with pytest.raises(ConfigError, match=f"{folder}/{gone}: no such file or folder"):
        mappings.place(Tree(mtime_ns=MTIME), placements, {})


@pytest.mark.parametrize("folder", ["/usr/bin", "/etc", "/home", "/var/run", "/lib64"])
def test_a_file_is_not_mapped_to_a_standard_folder(folder: str, tmp_path: Path) -> None:
    """It would replace the folder, or the symlink that images have there."""
    toml = project.make(tmp_path, project.LOCAL_AGENT, f'[mappings]\n"kestrel" = "{folder}"\n')
    with pytest.raises(ConfigError, match=f'{folder} is a folder; write "{folder}/"'):
        config.load(toml)
    toml.write_text(toml.read_text().replace(f'"{folder}"', f'"{folder}/"'))
    if folder != "/var/run":
        config.load(toml)


def test_a_file_does_not_replace_a_symlink_to_a_directory(tmp_path: Path) -> None:
    file = project.write(tmp_path, "tool", b"tool")
    tree = Tree(mtime_ns=0)
    tree.add(b"data", Directory(mode=0o755))
    tree.add(b"link", Symlink(target=b"data"))
    tree.add(b"resolv.conf", Symlink(target=b"nowhere"))
    placement = mappings.Placement(b"/link", file, S_IFREG, 0o644)
    with pytest.raises(ConfigError, match="a symlink to a directory exists there"):
        mappings.place(tree, [placement], {})
    mappings.place(tree, [mappings.Placement(b"/resolv.conf", file, S_IFREG, 0o644)], {})
    assert isinstance(tree.get(b"resolv.conf"), File)


def test_what_a_mapping_replaces_is_told(tmp_path: Path, fledge: project.Fledge) -> None:
    project.make(tmp_path, project.LOCAL_AGENT, '[mappings]\n"other" = "/bin/kestrel"\n')
    project.write(tmp_path, "other", b"#!/bin/sh\n")
    assert "a mapping replaces the agent at /bin/kestrel" in fledge("build").err
    project.make(tmp_path, project.LOCAL_AGENT, '[mappings]\n"other" = "/bin/busybox"\n')
    assert "a mapping replaces busybox at /bin/busybox" in fledge("build").err
    project.make(tmp_path, project.LOCAL_AGENT, '[mappings]\n"other" = "/init"\n')
    project.write(tmp_path, "other", b"#!/bin/sh\n", executable=True)
    done = fledge("build")
    assert "a mapping replaces the init at /init" in done.err
    assert "replaces the agent" not in done.err
    config_path = "/etc/fsify-entrypoint"
    toml = project.make_rootfs(tmp_path)
    toml.write_text(toml.read_text().replace("/etc/webserver/config.yaml", config_path))
    assert f"a mapping replaces the config of the image at {config_path}" in fledge("build").err
