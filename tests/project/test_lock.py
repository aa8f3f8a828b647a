"""fledge.lock as a file: reading, writing, problems."""

from __future__ import annotations

from pathlib import Path

import pytest

from fledge.oci.image import ImagePin
from fledge.project import lock
from fledge.project.lock import Lock, LockedSource
from fledge.sources.agent import AgentPin
from fledge.sources.busybox import BusyboxPin
from fledge.tree.digest import Digest
from tests.support import project
from tests.support.project import Fledge

LOCK = Lock(
    {
        "image": LockedSource(
            "docker.io/library/nginx:alpine",
            {
                "linux/arm64": ImagePin(None, Digest("c" * 64), ()),
                "linux/amd64": ImagePin(
                    Digest("a" * 64), Digest("b" * 64), (Digest("1" * 64), Digest("0" * 64))
                ),
            },
        ),
        "agent": LockedSource(
            "latest",
            {"amd64": AgentPin("v1.2.3", "https://example.org/kestrel", Digest("d" * 64))},
        ),
        "busybox": LockedSource("https://example.org/busybox", {"": BusyboxPin(Digest("e" * 64))}),
    }
)
TEXT = f"""\
# What the names and URLs in fledge.toml stand for, written by `fledge lock`.
# Keep it beside that file, in version control.

version = "1"

[image]
name = "docker.io/library/nginx:alpine"

[image.platforms."linux/amd64"]
manifest = "sha256:{"a" * 64}"
config = "sha256:{"b" * 64}"
diff_ids = [
    "sha256:{"1" * 64}",
    "sha256:{"0" * 64}",
]

[image.platforms."linux/arm64"]
config = "sha256:{"c" * 64}"
diff_ids = []

[agent]
name = "latest"

[agent.architectures.amd64]
version = "v1.2.3"
url = "https://example.org/kestrel"
sha256 = "{"d" * 64}"

[busybox]
url = "https://example.org/busybox"
sha256 = "{"e" * 64}"
"""


def test_text(tmp_path: Path) -> None:
    path = tmp_path / "fledge.lock"
    lock.write(LOCK, path, tmp_path / "fledge.toml")
    assert path.read_text() == TEXT
    assert lock.load(path) == LOCK
    assert lock.load(tmp_path / "none.lock") is None


def test_differences() -> None:
    busybox = LockedSource("https://example.org/busybox", {"": BusyboxPin(Digest("f" * 64))})
    new = Lock({"agent": LOCK.sections["agent"], "busybox": busybox})
    lines = lock.differences(LOCK, new)
    assert f"busybox sha256: {'f' * 64}, was {'e' * 64}" in lines
    assert "image name: nothing, was docker.io/library/nginx:alpine" in lines
    assert not any("agent" in line for line in lines)
    assert f"image platforms linux/amd64 diff_ids 1: nothing, was sha256:{'0' * 64}" in lines
    assert lock.differences(LOCK, LOCK) == []


@pytest.mark.parametrize(
    ("config", "path"),
    [("a/fledge.toml", "a/fledge.lock"), ("x.conf", "x.conf.lock"), ("x.lock", "x.lock.lock")],
)
def test_where_it_is(config: str, path: str) -> None:
    assert lock.path_beside(Path(config)) == Path(path)


@pytest.mark.parametrize(
    ("before", "after", "problem"),
    [
        ('version = "1"', 'version = "2"', 'version = "2": this fledge reads version = "1"'),
        ('version = "1"', "", "version is missing"),
        ('version = "1"', 'version = "1"\nmore = 1', "more is unknown"),
        ('name = "latest"', "", "[agent] name is missing"),
        ('name = "latest"', "name = 1", "[agent] name = 1: must be text"),
        (
            '"linux/amd64"',
            '"windows/amd64"',
            '[image.platforms."windows/amd64"]: the key must be a platform',
        ),
        ('"linux/amd64"', '"linux/x86_64"', "the key must be a platform"),
        ("architectures.amd64", 'architectures."../x"', "the key must be an architecture"),
        ("sha256:" + "a" * 64, "sha512:aa", '[image.platforms."linux/amd64"] manifest = '),
        ("sha256:" + "b" * 64, "b" * 64, '[image.platforms."linux/amd64"] config = '),
        ("sha256:" + "1" * 64, "../../etc/passwd", '[image.platforms."linux/amd64"] diff_ids = ['),
        ("diff_ids = []", "diff_ids = [1]", '[image.platforms."linux/arm64"] diff_ids = [1]'),
        ("diff_ids = []", "", '[image.platforms."linux/arm64"] diff_ids is missing'),
        ("https://example.org/kestrel", "javascript:x", "[agent.architectures.amd64] url = "),
        ("d" * 64, "d" * 63, "[agent.architectures.amd64] sha256 = "),
        (f'sha256 = "{"e" * 64}"', "", "[busybox] sha256 is missing"),
        ("[busybox]", "[busybox", ":29:9: a table begins with its name in brackets"),
        ("[busybox]", "<<<<<<< HEAD\n[busybox]", ":29: a conflict marker of git"),
        ("[agent]", "[agent]\nname = 'x'\n[agent]", "[agent] is given twice, first on line 21"),
        ('name = "latest"', "name = latest", 'text needs quotes: name = "latest"'),
    ],
)
def test_damaged(fledge: Fledge, tmp_path: Path, before: str, after: str, problem: str) -> None:
    project.make(tmp_path)
    assert before in TEXT
    (tmp_path / "fledge.lock").write_text(TEXT.replace(before, after, 1))
    for command in (["build"], ["build", "--locked"], ["lock"], ["lock", "--check"], ["fetch"]):
        done = fledge(*command)
        assert done.code == 2
        assert problem in done.err
        assert "delete it and run `fledge lock`" in done.err
    assert not (tmp_path / "plugin.cpio.gz").exists()


def test_every_problem_at_once(fledge: Fledge, tmp_path: Path) -> None:
    project.make(tmp_path)
    text = TEXT.replace("sha256:", "md5:").replace("https:", "\\u001b[31m:").replace("latest", " ")
    (tmp_path / "fledge.lock").write_text(text)
    done = fledge("build")
    assert done.code == 2
    assert "fledge.lock has 7 problems" in done.err
    assert "\x1b[31m:" not in done.err


@pytest.mark.parametrize("data", [b"\xff", b"#" * (1 << 20) + b"\n", b"a." * 5000 + b"b = 1"])
def test_no_text_at_all(fledge: Fledge, tmp_path: Path, data: bytes) -> None:
    project.make(tmp_path)
    (tmp_path / "fledge.lock").write_bytes(data)
    done = fledge("build")
    assert done.code == 2
    assert "delete it and run `fledge lock`" in done.err


def test_a_folder_as_lock(fledge: Fledge, tmp_path: Path) -> None:
    project.make(tmp_path)
    (tmp_path / "fledge.lock").mkdir()
    done = fledge("build")
    assert done.code == 2
    assert "fledge.lock: it is a folder, not a regular file\n  Restore it from" in done.err


@pytest.mark.parametrize(
    "name", ["a b", 'a"b\\', "\x7f", "ü\u2028\ufeff", "'''", '\t"""\r\n', "[image]", "#"]
)
def test_any_name_comes_back(tmp_path: Path, name: str) -> None:
    path = tmp_path / "fledge.lock"
    odd = Lock({"image": LockedSource(name, {}), "agent": LockedSource(name, {})})
    lock.write(odd, path, Path("x\ny.toml"))
    assert lock.load(path) == odd
