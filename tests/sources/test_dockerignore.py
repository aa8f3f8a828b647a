"""Which files a ``.dockerignore`` leaves out, and the digest of those that are left."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fledge.errors import ConfigError, FledgeError
from fledge.oci.archive import open_built
from fledge.sources import build_context, dockerignore
from fledge.store.cache import Cache
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
        ("a/**", ["a/b", "a/b/c"], ["a", "ab"]),
        ("a/**/b", ["a/b", "a/x/b", "a/x/y/b/c"], ["ab", "a/xb"]),
        ("**", ["a", "a/b"], []),
        ("docs\n!docs/keep", ["docs", "docs/a"], ["docs/keep", "docs/keep/x"]),
        ("!docs/keep\ndocs", ["docs/keep"], []),
        ("*.md\n!README*.md\nREADME-s.md", ["a.md", "README-s.md"], ["README-1.md"]),
        ("a[0-9]c\nb[^x-z]\n[ab\\]]d", ["a1c", "ba", "]d", "bd"], ["axc", "bx", "b/", "cd"]),
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
    [("!", "nothing follows !"), ("[a", "a [ without ]"), ("a\\", "a \\ at the end")],
)
def test_what_is_no_pattern(line: str, problem: str, tmp_path: Path) -> None:
    project.write(tmp_path, "Dockerfile", b"FROM scratch\n")
    project.write(tmp_path, ".dockerignore", f"a\n{line}\n".encode())
    with pytest.raises(ConfigError, match=r"\.dockerignore:2: ") as error:
        build_context.read(tmp_path / "Dockerfile", tmp_path)
    assert problem in error.value.message


@pytest.mark.parametrize("path", ["a*b", "[x]", "!a", "#b", "a\\b", "?", "a b/c", " a\n!b "])
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
    assert found.ignore == "a.txt\n!d/e\n.*\n*.docker*\n**/.fledge-*\n"


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


@pytest.fixture
def buildah(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with builders.environment("buildah") as variables:
        for variable, value in variables.items():
            monkeypatch.setenv(variable, value)
        yield


IGNORES = {
    "patterns": "*\n!*.txt\n!d\nd/**/x?\n",
    "exceptions": "# all\n/d/\n!d/e/**\nd/e/x1\n",
    "classes": "[ab].t[a-z]t\n**/x[^2]\n \\!odd\n",
    "anchors": "./d/../a.txt\n*/e\n!d/e/f\n",
}


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.usefixtures("buildah")
@pytest.mark.parametrize("name", IGNORES)
def test_buildah_leaves_out_the_same_files(name: str, tmp_path: Path) -> None:
    """buildah reads the original ``.dockerignore``, and fledge's own form of it."""
    names = ["a.txt", "b.txt", "c.md", "d/x1", "d/e/x1", "d/e/x2", "d/e/f/x2", "!odd"]
    for file in names:
        project.write(tmp_path / "c", file, b"")
    project.write(tmp_path / "c", ".dockerignore", IGNORES[name].encode())
    project.write(tmp_path, "Dockerfile", b"FROM scratch\nCOPY . /c/\n")
    own = build_context.read(tmp_path / "Dockerfile", tmp_path / "c").ignore
    project.write(tmp_path, "ignore", own.encode())
    left = {f"c/{each}" for each in names if not excluded(IGNORES[name], each)}
    for option in ([], ["--ignorefile", str(tmp_path / "ignore")]):
        build = ["buildah", "build", "-f", str(tmp_path / "Dockerfile"), "-t", "c", *option]
        daemons.run(*build, str(tmp_path / "c"))
        archive = tmp_path / f"{len(option)}.tar"
        daemons.run("buildah", "push", "--quiet", "c", f"docker-archive:{archive}")
        found = unpacked(open_built(archive, "c", AMD64), Cache(tmp_path / "cache"))
        assert found.keys() - {"c/.dockerignore"} == left
