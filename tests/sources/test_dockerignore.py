"""Which files a ``.dockerignore`` leaves out, and the digest of those that are left."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fledge.errors import ConfigError, FledgeError
from fledge.host.settings import Settings
from fledge.oci import layers
from fledge.oci.archive import open_built
from fledge.oci.builders import BuilderName, Request, build
from fledge.operations import seal
from fledge.project import manifest, provenance, signatures
from fledge.project.sboms import table as sboms
from fledge.report import Reporter
from fledge.session import Session
from fledge.sources import build_context, dockerignore, ownfiles
from fledge.store.cache import Cache
from fledge.tree import Directory, Tree
from tests.support import builders, daemons, project
from tests.support.layouts import AMD64, unpacked


def excluded(patterns: str, path: str) -> bool:
    """Return whether a path is left out, as it is in a folder tree."""
    parsed = dockerignore.parse(patterns)
    found: dockerignore.Matches = (False,) * len(parsed)
    parts = path.split("/")
    for end in range(1, len(parts) + 1):
        found = dockerignore.matches(parsed, "/".join(parts[:end]), found)
    return dockerignore.is_excluded(parsed, found)


@pytest.mark.parametrize(
    ("patterns", "out", "left"),
    [
        ("# note\n\n a.txt \n", ["a.txt"], ["b/a.txt", "a.txt2", "xa.txt"]),
        ("\ufeffa", ["a", "a/b"], ["b"]),
        ("/a\n./b/../c//d/", ["a", "c/d", "c/d/e"], ["x/a", "c"]),
        ("*", ["a", "a/b", ".x"], []),
        ("*.md\n!README.md", ["x.md"], ["README.md", "d/x.md"]),
        ("*/temp*", ["a/temp", "a/temporary.txt", "a/temp/b"], ["temp", "a/b/temp"]),
        ("*/*/temp*", ["a/b/temp1"], ["a/temp1"]),
        ("temp?", ["tempa"], ["temp", "tempab", "temp/"]),
        ("**/*.go", ["a.go", "x/a.go", "x/y/a.go"], ["a.gox"]),
        ("**.go", ["a.go", "x/a.go"], ["a.c"]),
        ("**foo", ["foo", "xfoo", "a/xfoo"], ["foox"]),
        ("**foo*", ["foo", "foo1", "a/foo1"], ["xfoo", "a/xfoo", "xfoo1", "sub/xfoo1"]),
        ("**foo/b", ["xfoo/b"], ["foo/c"]),
        ("a**b", ["ab", "a/b", "ax/b"], ["axb"]),
        ("a**", ["a", "ab", "ab/c"], ["ba"]),
        ("*\n!**/foo", ["a", "a/b"], ["foo", "a/foo", "a/b/foo/x"]),
        ("**/foo\n!**/foo/x", ["foo", "a/b/foo"], ["a/b/foo/x"]),
        ("*o*\n!**o", ["o1"], ["foo", "xfoo"]),
        ("a/b\n!a", ["a/b", "a/b/c"], ["a", "a/c"]),
        ("a/**", ["a/b", "a/b/c"], ["a", "ab"]),
        ("a/**/b", ["a/b", "a/x/b", "a/x/y/b/c"], ["ab", "a/xb"]),
        ("**", ["a", "a/b"], []),
        ("docs\n!docs/keep", ["docs", "docs/a"], ["docs/keep", "docs/keep/x"]),
        ("!docs/keep\ndocs", ["docs/keep"], []),
        ("*.md\n!README*.md\nREADME-s.md", ["a.md", "README-s.md"], ["README-1.md"]),
        ("a[0-9]c\nb[^x-z]\n[ab\\]]d", ["a1c", "ba", "]d", "bd"], ["axc", "bx", "cd"]),
        ("a[^x]c", ["abc", "a/c"], ["axc"]),
        (r"\*\?", ["*?"], ["ab"]),
        (r"\!a" + "\n" + r"\#b", ["!a", "#b"], ["a", "b"]),
        ("a.b+(c)$", ["a.b+(c)$"], ["axb+(c)$", "a.bb(c)$"]),
        ("../x", [], ["x"]),
        ("a b", ["a b"], ["a"]),
        ("é", ["é"], ["e"]),
    ],
)
def test_rules(patterns: str, out: list[str], left: list[str]) -> None:
    assert [path for path in out if not excluded(patterns, path)] == []
    assert [path for path in left if excluded(patterns, path)] == []


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("!", "nothing follows !"),
        ("x[a", "syntax error in pattern at '[a'"),
        ("[]]z", "syntax error in pattern at '[]]z'"),
        ("[^]a", "syntax error in pattern at '[^]a'"),
        ("[a-]foo", "syntax error in pattern at '[a-]foo'"),
        ("[-a]", "syntax error in pattern at '[-a]'"),
        ("[a-b-c]", "syntax error in pattern at '[a-b-c]'"),
        ("[z-a]", "syntax error in pattern"),
        ("a\\", "syntax error in pattern at '\\\\'"),
    ],
)
def test_what_is_no_pattern(line: str, problem: str, tmp_path: Path) -> None:
    project.write(tmp_path, "Dockerfile", b"FROM scratch\n")
    project.write(tmp_path, ".dockerignore", f"a\n{line}\n".encode())
    with pytest.raises(ConfigError, match=r"\.dockerignore:2: ") as error:
        build_context.read(tmp_path / "Dockerfile", tmp_path)
    assert problem in error.value.message


@pytest.mark.parametrize(
    "path",
    ["a*b", "[x]", "!a", "#b", "a\\b", "?", "a b/c", " a\n!b ", "^a+(b)|{2}$*", "\ufeffa\r"],
)
def test_a_line_for_one_path(path: str) -> None:
    line = dockerignore.excluding(path)
    assert excluded(line, path)
    assert not excluded(line, path.replace("*", "x").replace("?", "y").replace("[x]", "x") + "0")


def context(folder: Path, dockerfile: str = "Dockerfile") -> build_context.Context:
    return build_context.read(folder / dockerfile, folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("Dockerfile", "a.txt", "d/b.txt", "d/e/c.txt", "f/g"):
        project.write(tmp_path, name, name.encode())
    (tmp_path / "link").symlink_to("a.txt")
    return tmp_path


def point(link: Path, target: str) -> None:
    link.unlink()
    link.symlink_to(target)


def test_what_changes_the_digest(folder: Path) -> None:
    before = context(folder).digest
    seen = {before}
    os.utime(folder / "a.txt", (1, 1))
    (folder / "d").touch()
    assert context(folder).digest == before
    changes: list[Callable[[], object]] = [
        lambda: (folder / "a.txt").write_text("other"),
        lambda: (folder / "a.txt").chmod(0o755),
        lambda: (folder / "d").chmod(0o700),
        lambda: (folder / "f" / "g").rename(folder / "f" / "h"),
        lambda: point(folder / "link", "f"),
        (folder / "link").unlink,
        (folder / "empty").mkdir,
        lambda: os.mkfifo(folder / "fifo"),
    ]
    for change in changes:
        change()
        digest = context(folder).digest
        assert digest not in seen
        seen.add(digest)


def test_files_that_are_left_out_do_not_count(folder: Path) -> None:
    project.write(folder, ".dockerignore", b"d\n!d/e\nlink\n.dockerignore\n")
    before = context(folder).digest
    project.write(folder, "d/b.txt", b"other")
    (folder / "link").unlink()
    assert context(folder).digest == before
    project.write(folder, "d/e/c.txt", b"other")
    assert context(folder).digest != before


def test_an_ignore_file_of_the_dockerfile_counts_first(folder: Path) -> None:
    project.write(folder, "app.Dockerfile", b"")
    before = context(folder, "app.Dockerfile")
    project.write(folder, ".dockerignore", b"/a.txt # no comment\n")
    project.write(
        folder, "app.Dockerfile.dockerignore", b"/a.txt\n\n# a comment\n!d//e/\n.*\n*.docker*\n"
    )
    found = context(folder, "app.Dockerfile")
    assert found.digest != before.digest
    assert found.ignore == ("**/.fledge-*\n.dockerignore\na.txt\napp.Dockerfile.dockerignore\n")


def test_a_folder_stands_for_all_in_it_unless_something_is_taken_in_again(folder: Path) -> None:
    project.write(folder, ".dockerignore", b"*\n!d/e\n")
    project.write(folder, "d/x/y", b"")
    lines = context(folder).ignore.splitlines()[1:]
    assert lines == [".dockerignore", "Dockerfile", "a.txt", "d/b.txt", "d/x", "f", "link"]
    project.write(folder, ".dockerignore", b"d/**/*.txt\n")
    assert context(folder).ignore.splitlines()[1:] == ["d/b.txt", "d/e/*"]


def test_which_ignore_file_counts(folder: Path) -> None:
    names = [
        "Dockerfile.dockerignore",
        "Dockerfile.containerignore",
        ".containerignore",
        ".dockerignore",
    ]
    for name in names:
        project.write(folder, name, b"")
    for name in names:
        (folder / name).write_text("a.txt\n")
        assert "a.txt" in context(folder).ignore.splitlines(), name
        (folder / name).unlink()
    assert build_context.ignore_file(folder / "Dockerfile", folder) is None


def test_what_fledge_has_written_is_no_part_of_it(folder: Path) -> None:
    before = context(folder).digest
    lock = b"# What the names and URLs in fledge.toml stand for, written by `fledge lock`.\n"
    project.write(folder, "d/fledge.lock", lock)
    record = b'{"buildType": "https://github.com/volantvm/fledge/blob/main/README.md#provenance"}'
    for name, data in (("", b"artifact"), (".provenance.json", record), (".manifest.json", b"{}")):
        project.write(folder, f"w[e]b.img{name}", data)
    project.write(folder, ".fledge-0123/part", b"unfinished")
    found = context(folder)
    assert found.digest == before
    assert found.ignore.splitlines()[:2] == ["**/.fledge-*", "d/fledge.lock"]
    assert r"w\[e\]b.img.provenance.json" in found.ignore
    project.write(folder, "poetry.lock", b"content")
    project.write(folder, "other.provenance.json", b"{}")
    assert context(folder).digest != before


def test_files_that_only_begin_like_an_artifact_belong_to_it(folder: Path) -> None:
    record = f'{{"buildType": "{ownfiles.BUILD_TYPE}"}}'.encode()
    before = context(folder).ignore
    for name in ("app", "app.verity", "app.roothash.p7s", "app.manifest.json"):
        project.write(folder, name, b"")
    project.write(folder, "app.provenance.json", record)
    own = context(folder).ignore
    assert len(own.splitlines()) == len(before.splitlines()) + 5
    digest = context(folder).digest
    for name in ("app.py", "app.verity.md", "app.d/x", "app.lock", "app.img"):
        project.write(folder, name, b"")
        assert context(folder).digest != digest, name
        digest = context(folder).digest
    assert context(folder).ignore == own


def test_all_documents_of_an_artifact_are_known() -> None:
    artifact = Path("x.img")
    paths = {
        provenance.path_beside(artifact),
        signatures.path_beside(artifact),
        manifest.path_beside(artifact),
        seal.path_beside(artifact),
        seal.signature_path(artifact),
        *(sboms.path_beside(artifact, kind) for kind in sboms.SBOM_FORMATS),
    }
    assert {str(path) for path in paths} == {f"x.img{each}" for each in ownfiles.DOCUMENT_SUFFIXES}


def test_a_context_that_cannot_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX) as opened:
        monkeypatch.chdir(folder)
        opened.bind("socket")
        assert context(folder).digest  # a builder leaves it out
    project.write(folder, ".dockerignore", b"x" * (build_context.MAX_IGNORE_SIZE + 1))
    with pytest.raises(ConfigError, match="larger than"):
        context(folder)
    (folder / ".dockerignore").unlink()
    (folder / ".dockerignore").mkdir()
    with pytest.raises(FledgeError, match=r"\.dockerignore could not be read"):
        context(folder)


@pytest.fixture(params=builders.NAMES)
def builder(request: pytest.FixtureRequest) -> Iterator[tuple[BuilderName, Settings]]:
    """A builder, and settings with which it works."""
    with builders.environment(request.param) as variables:
        yield request.param, Settings({**os.environ, **variables})


IGNORES = (
    "",
    "**foo",
    "**foo*",
    "**/foo",
    "**/foo*",
    "*foo\n!xfoo",
    "*\n!**/foo",
    "*\n!*/foo",
    "*\n!a",
    "**/foo\n!**/foo/x",
    "**/b/**\n!**/x",
    "**/b\n!**/x",
    "**/a\n!**/a/foo",
    "*o*\n!**o",
    "a\n!a/b\na/b/foo",
    "a/b\n!a",
    "!a\na/**",
    "a/**/x\nsub",
    "a**foo",
    "x**",
    "a/b/*\nsub/**",
    "**",
    "**\n!**/x",
    "/a/./b/../xfoo\n/foo/",
    "[a-f]oo[^x]\n?foo",
    "*/*\n!*/x*",
    "# foo\n \\!odd \nx?oo1",
    "\\^x+(1)|{2}$\\*",
    "*x\\*\n a b\n*\u00e9*",
    "*[ ]*",
    "[\\^\\-]*",
)
FILES = (
    *("foo", "xfoo", "foo1", "xfoo1", "a/foo", "a/xfoo", "a/b/foo/x", "a/b/x", "a/b/y", "b/x"),
    *("sub/xfoo1", "sub/x/foo", "!odd", "#odd", "^x+(1)|{2}$*", "^x+(1)|{2}$y", "xx*", "xxy"),
    *(" a b", "a b ", "a b", "[x]", "\u00e9", "\u00e9e", "-"),
)
"""Some of them differ only in what a pattern must escape."""


@pytest.mark.real
@pytest.mark.slow
def test_builders_copy_what_the_digest_covers(
    builder: tuple[BuilderName, Settings], tmp_path: Path
) -> None:
    """Each pattern has a folder of its own in one context."""
    project.write(tmp_path, "Dockerfile", b"FROM scratch\nCOPY . /\n")
    digests, lines = [], []
    for number, patterns in enumerate(IGNORES):
        part = tmp_path / "context" / str(number)
        for file in FILES:
            project.write(part, file, b"")
        project.write(tmp_path, f"{number}.dockerignore", patterns.encode())
        found = build_context.read(tmp_path / str(number), part)
        digests.append(found.digest)
        lines += [f"{number}/{line}\n" for line in found.ignore.splitlines()]
    request = Request(
        dockerfile=tmp_path / "Dockerfile",
        context=tmp_path / "context",
        ignore="".join(lines),
        target=None,
        build_args=(),
        secrets=(),
        platform=AMD64,
        name="Dockerfile",
    )
    name, settings = builder
    session = Session(settings, Cache(tmp_path / "cache"), Reporter())
    tree = Tree(mtime_ns=0)
    layers.unpack(build(request, name, session).image, tree, session)
    for path, node in tree.walk():
        if isinstance(node, Directory):
            (tmp_path / "copied" / path.decode()).mkdir(parents=True)
        else:
            project.write(tmp_path / "copied", path.decode(), b"")
    for number, digest in enumerate(digests):
        copied = build_context.read(tmp_path / "None", tmp_path / "copied" / str(number))
        assert copied.digest == digest, IGNORES[number]


PLAIN = {
    "patterns": "*\n!*.txt\n!d\nd/**/x?\n",
    "exceptions": "# all\n/d/\n!d/e/**\nd/e/x1\n",
    "classes": "[ab].t[a-z]t\n**/x[^2]\n \\!odd\n",
    "anchors": "./d/../a.txt\n*/e\n!d/e/f\n",
}


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize("name", PLAIN)
def test_buildah_reads_plain_patterns_alike(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of others, such as ``**foo``, it has another opinion than moby."""
    names = ["a.txt", "b.txt", "c.md", "d/x1", "d/e/x1", "d/e/x2", "d/e/f/x2", "!odd"]
    for file in names:
        project.write(tmp_path / "c", file, b"")
    project.write(tmp_path / "c", ".dockerignore", PLAIN[name].encode())
    project.write(tmp_path, "Dockerfile", b"FROM scratch\nCOPY . /c/\n")
    left = {f"c/{each}" for each in names if not excluded(PLAIN[name], each)}
    archive = tmp_path / "image.tar"
    with builders.environment("buildah") as variables:
        for variable, value in variables.items():
            monkeypatch.setenv(variable, value)
        dockerfile = tmp_path / "Dockerfile"
        daemons.run("buildah", "build", "-f", dockerfile, "-t", "c", tmp_path / "c")
        daemons.run("buildah", "push", "--quiet", "c", f"docker-archive:{archive}")
    found = unpacked(open_built(archive, "c", AMD64), Cache(tmp_path / "cache"))
    assert found.keys() - {"c/.dockerignore"} == left
