"""What a fledge.toml may say, and what fledge says of one with mistakes."""

from __future__ import annotations

import stat
from pathlib import Path

import project
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from test_files import without_rights

from fledge.errors import ConfigError
from fledge.oci import reference
from fledge.project import config
from fledge.project.config import (
    DEFAULT_BUSYBOX_SHA256,
    DEFAULT_BUSYBOX_URL,
    MAX_BUFFER_MB,
    Agent,
    Config,
    Filesystem,
    HttpAgent,
    Init,
    LocalAgent,
    ReleaseAgent,
    Source,
)
from fledge.project.toml import MAX_SIZE, InvalidConfig
from fledge.sources.mappings import Placement

INITRAMFS = 'version = "1"\nstrategy = "initramfs"\n'
OCI_ROOTFS = 'version = "1"\nstrategy = "oci_rootfs"\nsource.image = "nginx:alpine"\n'
NGINX = reference.Name("docker.io", "library/nginx", "alpine")
DIGEST = "0123456789abcdef" * 4

MUST_BE_TEXT = ["1", "1.5", "true", "1979-05-27", "[]", "['text']", "{}", "''", "' '", '"\\u0000"']
MUST_BE_BOOLEAN = ["0", "1", "'true'", "[true]", "{}"]
MUST_BE_NATURAL = ["true", "-1", "1.0", "inf", "'1'", "[1]", "{}", "16777217", "0x" + "f" * 4000]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the fledge.toml goes, with all the files that the texts here name."""
    project.write(tmp_path, "kestrel", b"agent", executable=True)
    project.write(tmp_path, "my-init", b"init", executable=True)
    project.write(tmp_path, "app.conf", b"plain")
    (tmp_path / "empty").mkdir()
    return tmp_path


def load(folder: Path, text: str) -> Config:
    return config.load(project.write(folder, "fledge.toml", text.encode()))


def problems(folder: Path, text: str) -> list[str]:
    with pytest.raises(InvalidConfig) as caught:
        load(folder, text)
    path = folder / "fledge.toml"
    listed = caught.value.message.splitlines()[1:]
    assert listed == [f"  {path}: {problem}" for problem in caught.value.problems]
    assert caught.value.exit_code == 2
    return caught.value.problems


def test_everything_of_an_initramfs(folder: Path) -> None:
    text = f"""
        version = "1"
        strategy = "initramfs"

        [agent]
        source_strategy = "release"
        version = "v1.2.3"
        checksum = "{DIGEST}"

        [init]
        none = false

        [source]
        image = "docker.io/library/nginx:alpine"
        busybox_url = "https://example.org/busybox"
        busybox_sha256 = "{DIGEST}"

        [mappings]
        "app.conf" = "/etc/"
        "empty" = "/srv/data"
    """
    assert replace(load(folder, text), data={}) == Config(
        path=folder / "fledge.toml",
        strategy="initramfs",
        agent=ReleaseAgent("v1.2.3", DIGEST),
        init=None,
        source=Source(NGINX, "https://example.org/busybox", DIGEST),
        filesystem=Filesystem(),
        placements=(
            Placement(b"/etc/app.conf", folder / "app.conf", stat.S_IFREG, 0o644),
            Placement(b"/srv/data", folder / "empty", stat.S_IFDIR, 0o755),
        ),
    )


def test_everything_of_a_rootfs(folder: Path) -> None:
    text = """
        version = "1"
        strategy = "oci_rootfs"

        [agent]
        source_strategy = "local"
        path = "kestrel"

        [source]
        image = "nginx:alpine"

        [filesystem]
        type = "btrfs"
        size_buffer_mb = 512
        preallocate = true

        [mappings]
        "my-init" = "/init"
    """
    assert replace(load(folder, text), data={}) == Config(
        path=folder / "fledge.toml",
        strategy="oci_rootfs",
        agent=LocalAgent(folder / "kestrel"),
        init=None,
        source=Source(NGINX),
        filesystem=Filesystem("btrfs", 512, preallocate=True),
        placements=(Placement(b"/init", folder / "my-init", stat.S_IFREG, 0o755),),
    )


@pytest.mark.parametrize(
    "text", [INITRAMFS, OCI_ROOTFS, INITRAMFS + "[agent]\n[init]\n[source]\n[mappings]\n"]
)
def test_defaults(folder: Path, text: str) -> None:
    loaded = load(folder, text)
    assert loaded.agent == ReleaseAgent("latest", None)
    assert loaded.init is None
    assert loaded.source.busybox_url == DEFAULT_BUSYBOX_URL
    assert loaded.source.busybox_sha256 == DEFAULT_BUSYBOX_SHA256
    assert loaded.filesystem == Filesystem("ext4", size_buffer_mb=0, preallocate=False)
    assert loaded.placements == ()


@pytest.mark.parametrize(
    ("lines", "agent"),
    [
        ("version = 'v2'", ReleaseAgent("v2")),
        ("source_strategy = 'release'", ReleaseAgent()),
        ("source_strategy = 'http'\nurl = 'https://h/k'", HttpAgent("https://h/k")),
        ("source_strategy = 'http'\nurl = 'file:///k'", HttpAgent("file:///k")),
        (
            "source_strategy = 'http'\nurl = 'HTTP://[::1]:80/k?v=1'",
            HttpAgent("HTTP://[::1]:80/k?v=1"),
        ),
        (f"checksum = '{DIGEST.upper()}'", ReleaseAgent(checksum=DIGEST)),
        (f"checksum = 'sha256:{DIGEST}'", ReleaseAgent(checksum=DIGEST)),
        (f"checksum = 'SHA256:{DIGEST.upper()}'", ReleaseAgent(checksum=DIGEST)),
    ],
)
def test_agent(folder: Path, lines: str, agent: Agent) -> None:
    assert load(folder, f"{INITRAMFS}[agent]\n{lines}").agent == agent


@pytest.mark.parametrize(
    "line",
    ["init.none = true\nmappings.my-init = '/init'", "init.none = true\nsource.image = 'nginx'"],
)
def test_init_from_a_mapping_or_an_image(folder: Path, line: str) -> None:
    loaded = load(folder, INITRAMFS + line)
    assert loaded.init == Init(None)
    assert loaded.agent is None


def test_folder_may_go_where_init_mounts(folder: Path) -> None:
    loaded = load(folder, INITRAMFS + "mappings.empty = '/run/app'")
    assert [placement.path for placement in loaded.placements] == [b"/run/app"]


@pytest.mark.parametrize("size", [0, 1, MAX_BUFFER_MB])
def test_size_buffer(folder: Path, size: int) -> None:
    loaded = load(folder, f"{OCI_ROOTFS}filesystem.size_buffer_mb = {size}")
    assert loaded.filesystem.size_buffer_mb == size


@pytest.mark.parametrize("toml", ["project/fledge.toml", "project/../project/fledge.toml"])
def test_relative_paths_start_at_the_config(
    folder: Path, monkeypatch: pytest.MonkeyPatch, toml: str
) -> None:
    text = f"{INITRAMFS}init.path = '../my-init'\nmappings.'../app.conf' = '/a'"
    project.write(folder, "project/fledge.toml", text.encode())
    monkeypatch.chdir(folder)
    loaded = config.load(Path(toml))
    assert loaded.init and loaded.init.path == Path(toml).parent / "../my-init"
    assert [p.source for p in loaded.placements] == [Path(toml).parent / "../app.conf"]


def test_absolute_paths(folder: Path) -> None:
    text = f"{INITRAMFS}init.path = '{folder}/my-init'\nmappings.'{folder}/app.conf' = '/a'"
    loaded = load(folder / "empty", text)
    assert loaded.init == Init(folder / "my-init")
    assert [p.source for p in loaded.placements] == [folder / "app.conf"]


@pytest.mark.parametrize(
    ("text", "where", "right"),
    [
        ("", "strategy is missing", '"initramfs" or "oci_rootfs"'),
        ("strategy = 'initramf'", 'strategy = "initramf"', 'did you mean "initramfs"?'),
        ("strategy = 'x'", 'strategy = "x"', 'must be "initramfs" or "oci_rootfs"'),
        ("strategy = 'oci_rootfs'", "[source] image is missing", 'write image = "nginx:alpine"'),
        (
            "strategy = 'oci_rootfs'\n[source]\nimage = 'x'\n[init]",
            "[init]",
            'only for strategy = "initramfs"; remove',
        ),
    ],
)
def test_strategy(folder: Path, text: str, where: str, right: str) -> None:
    [problem] = problems(folder, f"version = '1'\n{text}")
    assert problem.startswith(where)
    assert right in problem


@pytest.mark.parametrize("line", ["", "version = '2'", "version = '1.0'", "version = 1"])
def test_version(folder: Path, line: str) -> None:
    [problem] = problems(folder, f"{line}\nstrategy = 'initramfs'")
    assert problem.startswith("version ")
    assert '"1"' in problem


@pytest.mark.parametrize(
    ("lines", "where", "right"),
    [
        ("agent = 'latest'", 'agent = "latest"', "must be a table: [agent]"),
        ("[[agent]]\nversion = 'v1'", 'agent = [{"version": "v1"}]', "must be a table: [agent]"),
        ("mappings = 1", "mappings = 1", "must be a table: [mappings]"),
        (
            "agent.source_strategy = 'htttp'",
            '[agent] source_strategy = "htttp"',
            'did you mean "http"?',
        ),
        ("agent.source_strategy = 'local'", "[agent] path is missing", "write path ="),
        ("agent.source_strategy = 'http'", "[agent] url is missing", "write url ="),
        ("agent.path = 'kestrel'", '[agent] path = "kestrel"', 'source_strategy = "local"'),
        ("agent.url = 'https://h'", '[agent] url = "https://h"', 'source_strategy = "http"'),
        (
            "agent = {source_strategy = 'local', path = 'kestrel', version = 'v1'}",
            '[agent] version = "v1"',
            'source_strategy = "release"',
        ),
        (
            "agent = {source_strategy = 'local', path = 'gone'}",
            '[agent] path = "gone"',
            "/gone: no such file",
        ),
        (
            "agent = {source_strategy = 'local', path = 'empty'}",
            '[agent] path = "empty"',
            "/empty is not a file",
        ),
        (
            f"agent = {{source_strategy = 'local', path = '{'f' * 300}'}}",
            f'[agent] path = "{"f" * 79}…: ',
            "file name too long",
        ),
        ("agent.checksum = 'abc'", '[agent] checksum = "abc"', "64 hexadecimal digits"),
        (f"agent.checksum = '{DIGEST}0'", f'[agent] checksum = "{DIGEST}0"', "64 hex"),
        (f"agent.checksum = 'md5:{DIGEST}'", "[agent] checksum = ", "64 hex"),
        ("source.busybox_url = 'https://h'", "[source] busybox_sha256 is missing", "busybox_url"),
        (
            f"source.busybox_sha256 = '{DIGEST}'",
            "[source] busybox_url is missing",
            "busybox_sha256",
        ),
        ("init.path = 'gone'", '[init] path = "gone"', "/gone: no such file"),
        ("init = {path = 'my-init', none = true}", "[init] none = true", "contradicts path"),
        (
            "init.path = 'my-init'\nmappings.kestrel = '/init'",
            '[init] path = "my-init"',
            "/kestrel is mapped to /init as well",
        ),
        ("init.none = true", "[init] none = true", "map an executable to it"),
        (
            "init.none = true\nmappings.my-init = '/init/'",
            "[init] none = true",
            "map an executable to it",
        ),
        ("mappings.'app.conf' = '/init'", "[init]", "app.conf becomes /init"),
        ("mappings.empty = '/init'", "[init]", "empty becomes /init"),
        ("[init]\npath = 'my-init'\n[agent]", "[agent]", "an init of your own starts no agent"),
        (
            "init.none = true\nmappings.my-init = '/init'\nagent.version = 'v1'",
            "[agent]",
            "an init of your own starts no agent",
        ),
        ("[filesystem]", "[filesystem]", 'only for strategy = "oci_rootfs"'),
        ("filesystem.type = 'ext4'", "[filesystem]", 'only for strategy = "oci_rootfs"'),
        ("mappings.gone = '/x'", '[mappings] gone = "/x"', "/gone: no such file or folder"),
        ("mappings.'app.conf' = ''", '[mappings] "app.conf" = ""', "must be absolute"),
        (
            "mappings.'app.conf' = 'etc/x'",
            '[mappings] "app.conf" = "etc/x"',
            'absolute; write "/etc/x"',
        ),
        ("mappings.'app.conf' = '/a/../b'", '[mappings] "app.conf" = "/a/../b"', "contain .."),
        ("mappings.'app.conf' = '/..'", '[mappings] "app.conf" = "/.."', "contain .."),
        ('mappings.kestrel = "/a\\u0000b"', '[mappings] kestrel = "/a\\u0000b"', "NUL"),
        ("mappings.'' = '/a'", '[mappings] "" = "/a"', "the source must be the path"),
        ('mappings."\\u0000" = "/a"', '[mappings] "\\u0000" = "/a"', "the source must be"),
        (f"mappings.kestrel = '/{'n' * 256}'", "[mappings] kestrel = ", "longer than 255 bytes"),
        ("mappings.kestrel = 1", "[mappings] kestrel = 1", "must be text"),
        (
            "mappings.app.conf = '/etc/app.conf'",
            '[mappings] app = {"conf": "/etc/app.conf"}',
            'quotes: "app.conf"',
        ),
        ("mappings.'/dev/null' = '/x'", '[mappings] "/dev/null" = "/x"', "is a device"),
        (
            "mappings.kestrel = '/tmp/kestrel'",
            "[mappings]",
            "/kestrel goes to /tmp/kestrel, where nothing will see it",
        ),
    ],
)
def test_initramfs_mistakes(folder: Path, lines: str, where: str, right: str) -> None:
    [problem] = problems(folder, INITRAMFS + lines)
    assert problem.startswith(where)
    assert right in problem


@pytest.mark.parametrize(
    ("lines", "where", "right"),
    [
        ("[init]", "[init]", 'only for strategy = "initramfs"'),
        (
            "[init]\npath = 'my-init'\n[agent]\nversion = 'v1'",
            "[init]",
            'only for strategy = "initramfs"',
        ),
        (
            f"source.busybox_sha256 = '{DIGEST}'",
            f'[source] busybox_sha256 = "{DIGEST}"',
            'only for strategy = "initramfs"',
        ),
        (
            "filesystem.type = 'ext3'",
            '[filesystem] type = "ext3"',
            'did you mean "ext4"?',
        ),
        ("filesystem.type = 'zfs'", '[filesystem] type = "zfs"', 'did you mean "xfs"?'),
        (
            "filesystem.type = 'vfat'",
            '[filesystem] type = "vfat"',
            'must be "ext4" or "xfs" or "btrfs"',
        ),
        ("filesystem = 'ext4'", 'filesystem = "ext4"', "must be a table: [filesystem]"),
        ("filesystem.typ = 'xfs'", "[filesystem] typ is unknown", "did you mean type?"),
    ],
)
def test_rootfs_mistakes(folder: Path, lines: str, where: str, right: str) -> None:
    [problem] = problems(folder, OCI_ROOTFS + lines)
    assert problem.startswith(where)
    assert right in problem


@pytest.mark.parametrize(
    "url",
    [
        *("x", "/x", "//h/x", "ftp://h/x", "http://", "http:///x", "https://:80/", "https://[::1"),
        *("http://h:port/", "http://h:65536/", " https://h/", "https://h/a b", "https://h/a\\nb"),
        *("file:x", "file:", "file://elsewhere/x"),
    ],
)
@pytest.mark.parametrize("key", ["agent.url", "source.busybox_url"])
def test_bad_urls(folder: Path, key: str, url: str) -> None:
    context = f"agent.source_strategy = 'http'\nsource.busybox_sha256 = '{DIGEST}'\n"
    good = "agent.url = 'https://h'\nsource.busybox_url = 'https://h'"
    [problem] = problems(
        folder, INITRAMFS + context + good.replace(f"{key} = 'https://h'", f'{key} = "{url}"')
    )
    table, _, name = key.partition(".")
    assert problem.startswith(f"[{table}] {name} = ")
    assert "https://" in problem


@pytest.mark.parametrize(
    ("context", "key", "values", "right"),
    [
        (INITRAMFS, "agent.source_strategy", MUST_BE_TEXT, '"release" or "local" or "http"'),
        (INITRAMFS, "agent.version", MUST_BE_TEXT, '"v1.2.3"'),
        (INITRAMFS + "agent.source_strategy = 'local'\n", "agent.path", MUST_BE_TEXT, "path/of"),
        (INITRAMFS + "agent.source_strategy = 'http'\n", "agent.url", MUST_BE_TEXT, "https://"),
        (INITRAMFS, "agent.checksum", MUST_BE_TEXT, "sha256"),
        (INITRAMFS, "init.path", MUST_BE_TEXT, "path/of"),
        (INITRAMFS, "init.none", MUST_BE_BOOLEAN, "must be true or false"),
        (INITRAMFS, "source.image", MUST_BE_TEXT, '"nginx:alpine"'),
        (
            f"{INITRAMFS}source.busybox_sha256 = '{DIGEST}'\n",
            "source.busybox_url",
            MUST_BE_TEXT,
            "https://",
        ),
        (
            INITRAMFS + "source.busybox_url = 'https://h'\n",
            "source.busybox_sha256",
            MUST_BE_TEXT,
            "sha256",
        ),
        (OCI_ROOTFS, "filesystem.type", MUST_BE_TEXT, '"ext4"'),
        (OCI_ROOTFS, "filesystem.size_buffer_mb", MUST_BE_NATURAL, "whole number from 0 to 167772"),
        (OCI_ROOTFS, "filesystem.preallocate", MUST_BE_BOOLEAN, "must be true or false"),
        (INITRAMFS, "mappings.kestrel", [*MUST_BE_TEXT[:7], "'x'"], "/"),
    ],
)
def test_wrong_values(folder: Path, context: str, key: str, values: list[str], right: str) -> None:
    table, _, name = key.partition(".")
    for value in values:
        [problem] = problems(folder, f"{context}{key} = {value}")
        assert problem.startswith(f"[{table}] {name} = ")
        assert right in problem


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("stratgy = 1", "stratgy is unknown: did you mean strategy?"),
        ("mapping.x = '/x'", "mapping is unknown: did you mean mappings?"),
        (
            "[zzz]",
            "zzz is unknown: known here:"
            " agent, filesystem, init, mappings, source, strategy, version",
        ),
        ("agent.check_sum = 1", "[agent] check_sum is unknown: did you mean checksum?"),
        ("agent.sha = 1", "[agent] sha is unknown: known here: checksum, path, "),
        ("init.non = true", "[init] non is unknown: did you mean none?"),
        ("source.bysybox_url = 1", "[source] bysybox_url is unknown: did you mean busybox_url?"),
        ("source.'a b' = 1", '[source] "a b" is unknown: known here: busybox_sha256, '),
        ("agent.'é' = 1", '[agent] "é" is unknown'),
    ],
)
def test_unknown_keys(folder: Path, line: str, problem: str) -> None:
    [found] = problems(folder, INITRAMFS + line)
    assert found.startswith(problem)


def test_every_mistake_in_one_go(folder: Path) -> None:
    text = """
        version = 1
        strategy = "initramfs"
        extra = true

        [agent]
        source_strategy = "local"
        path = "gone"
        checksum = "abc"
        url = "https://example.org"

        [init]
        path = "gone"
        none = "yes"

        [source]
        image = ""
        busybox_url = "ftp://example.org"

        [filesystem]
        type = "ext3"
        size_buffer_mb = -1
        preallocate = 1

        [mappings]
        "app.conf" = "etc"
        "gone" = "/a"
        "my-init" = "/x"
        "kestrel" = "/x"
    """
    expected = {
        "version = 1",
        "extra is unknown",
        "[agent]: an init of your own",
        '[agent] path = "gone"',
        '[agent] checksum = "abc"',
        '[agent] url = "https://example.org"',
        '[init] path = "gone"',
        '[init] none = "yes"',
        '[source] image = ""',
        '[source] busybox_url = "ftp://example.org"',
        "[source] busybox_sha256 is missing",
        "[filesystem]: only for",
        '[filesystem] type = "ext3"',
        "[filesystem] size_buffer_mb = -1",
        "[filesystem] preallocate = 1",
        '[mappings] "app.conf" = "etc"',
        '[mappings] gone = "/a"',
        '[mappings] my-init = "/x"',
    }
    found = problems(folder, text)
    assert len(found) == len(expected)
    assert {start for start in expected if any(p.startswith(start) for p in found)} == expected


@pytest.mark.parametrize(
    ("raw", "where"),
    [
        (b"version = ", "line 1, column 11: TOML syntax: "),
        (b'version = "1"\nstrategy = initramfs\n', "line 2, column 12: TOML syntax: "),
        (b'version = "1"\r\n[agent\r\n', "line 2, column 7: TOML syntax: "),
        (b'version = "1"\nversion = "1"\n', "line 2, column 14: TOML syntax: "),
        (b"\0", "line 1, column 1: TOML syntax: "),
        (b'version = "\0"', "line 1, column 12: TOML syntax: "),
        (b'\n\nversion = "\xff"', "line 3: not UTF-8"),
        (INITRAMFS.encode("utf-16"), "line 1: not UTF-8"),
    ],
)
def test_not_toml(folder: Path, raw: bytes, where: str) -> None:
    path = project.write(folder, "fledge.toml", raw)
    with pytest.raises(InvalidConfig) as caught:
        config.load(path)
    [problem] = caught.value.problems
    assert problem.startswith(where)


@pytest.mark.parametrize(
    "text",
    [
        "version = " + "[" * 100_000,
        "version = " + "[" * 500 + "]" * 500,
        "version = " + "{a = " * 500 + "1" + "}" * 500,
        "version" + ".a" * 900 + " = 1",
        "version" + ".a" * 50_000 + " = 1",
        "[version" + ".a" * 900 + "]",
        "version = " + "9" * 5000,
        "version = 0x" + "f" * 5000,
    ],
    ids=lambda text: f"{text[:14]} {len(text)}",
)
def test_too_deep_or_long_for_python(folder: Path, text: str) -> None:
    assert problems(folder, text)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "no such file"),
        (Path.mkdir, "is a directory"),
        (lambda path: path.symlink_to(path), "too many levels of symbolic links"),
        (lambda path: path.write_bytes(b"#" * (MAX_SIZE + 1)), "larger than 1048576 bytes"),
        (lambda path: path.symlink_to("/dev/zero"), "larger than 1048576 bytes"),
    ],
    ids=["missing", "folder", "loop", "large", "endless"],
)
def test_no_file_to_read(tmp_path: Path, make: object, message: str) -> None:
    path = tmp_path / "fledge.toml"
    assert callable(make)
    make(path)
    with pytest.raises(ConfigError, match=message) as caught:
        config.load(path)
    assert str(path) in caught.value.message


def test_empty_file(folder: Path) -> None:
    assert problems(folder, "") == [
        'version is missing: write version = "1"',
        'strategy is missing: write strategy = "initramfs" or "oci_rootfs"',
    ]


@pytest.mark.parametrize(
    ("hidden", "problem"),
    [
        ("fledge.toml", "fledge.toml: permission denied"),
        ("kestrel", '[agent] path = "kestrel": kestrel cannot be read'),
        ("app.conf", '[mappings] "app.conf" = "/a": app.conf cannot be read'),
        ("etc", '[mappings] etc = "/etc": etc: permission denied'),
        ("keys", '[agent] path = "keys/kestrel": keys/kestrel: permission denied'),
    ],
)
def test_unreadable(
    folder: Path, monkeypatch: pytest.MonkeyPatch, hidden: str, problem: str
) -> None:
    agent = "keys/kestrel" if hidden == "keys" else "kestrel"
    project.write(folder, "keys/kestrel", b"")
    project.write(folder, "etc/passwd", b"")
    text = f"agent = {{source_strategy = 'local', path = '{agent}'}}\n"
    text += "mappings = {'app.conf' = '/a', etc = '/etc'}"
    project.write(folder, "fledge.toml", (INITRAMFS + text).encode())
    monkeypatch.chdir(folder)
    folder.chmod(0o755)
    (folder / hidden).chmod(0)
    with without_rights(), pytest.raises(ConfigError) as caught:
        config.load(Path("fledge.toml"))
    (folder / hidden).chmod(0o700)
    assert problem in caught.value.message


KEYS = [
    *("version", "strategy", "agent", "init", "source", "filesystem", "mappings", "other"),
    *("agent.source_strategy", "agent.version", "agent.path", "agent.url", "agent.checksum"),
    *("init.path", "init.none", "source.image", "source.busybox_url", "source.busybox_sha256"),
    *("filesystem.type", "filesystem.size_buffer_mb", "filesystem.preallocate", "mappings.'.'"),
]
VALUES = [
    *(
        "'1'",
        "'initramfs'",
        "'oci_rootfs'",
        "'local'",
        "'http'",
        "'kestrel'",
        "'/init'",
        "'\ufffe'",
    ),
    *("'https://h'", f"'{DIGEST}'", "'ext4'", "''", "true", "1", "-1", "nan", "07:32:00", "[[]]"),
    *("{}", "{path = 'kestrel'}", "{'' = ''}", "'~'", "'%s'", "'.'", "{a.b = [{}]}"),
]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(KEYS), st.sampled_from(VALUES)))
def test_any_config_is_read_or_explained(folder: Path, lines: dict[str, str]) -> None:
    text = "\n".join(f"{key} = {value}" for key, value in lines.items())
    try:
        load(folder, text)
    except InvalidConfig as error:
        assert all(error.problems)
