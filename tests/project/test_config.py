"""Valid and invalid configs, and the messages about problems."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fledge.cpio.format import GzipInitramfs
from fledge.disks.loopfs.format import Btrfs
from fledge.errors import ConfigError
from fledge.ext4.format import Ext4
from fledge.oci import reference
from fledge.project import config
from fledge.project.config import Config
from fledge.project.toml import MAX_TOML_SIZE, InvalidConfig
from fledge.sources.agent import Agent, HttpAgent, LocalAgent, ReleaseAgent
from fledge.sources.busybox import Busybox
from fledge.sources.image import Image
from fledge.sources.init import Init
from fledge.sources.mappings import Mappings, Placement
from fledge.sources.source import Source
from fledge.tree.digest import Digest
from fledge.tree.space import MAX_BUFFER_MB
from tests.support import project
from tests.support.rights import without_rights

INITRAMFS = 'version = "1"\nstrategy = "initramfs"\n'
OCI_ROOTFS = 'version = "1"\nstrategy = "oci_rootfs"\nsource.image = "nginx:alpine"\n'
NGINX = reference.Name("docker.io", "library/nginx", "alpine")
DIGEST = Digest("0123456789abcdef" * 4)

MUST_BE_TEXT = ["1", "1.5", "true", "1979-05-27", "[]", "['text']", "{}", "''", "' '", '"\\u0000"']
MUST_BE_BOOLEAN = ["0", "1", "'true'", "[true]", "{}"]
MUST_BE_NATURAL = ["true", "-1", "1.0", "inf", "'1'", "[1]", "{}", "16777217", "0x" + "f" * 4000]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of the fledge.toml, with all files that the configs here name."""
    project.write(tmp_path, "kestrel", b"agent", executable=True)
    project.write(tmp_path, "my-init", b"init", executable=True)
    project.write(tmp_path, "app.conf", b"plain")
    (tmp_path / "empty").mkdir()
    return tmp_path


def load(folder: Path, text: str) -> Config:
    return config.load(project.write(folder, "fledge.toml", text.encode()))


def mistakes(folder: Path, text: str) -> list[tuple[int | None, str]]:
    """Return the line and the message of each problem."""
    with pytest.raises(InvalidConfig) as caught:
        load(folder, text)
    listed = str(caught.value).splitlines()[1:]
    path = folder / "fledge.toml"
    assert listed == [f"  {problem.shown(path)}" for problem in caught.value.problems]
    assert caught.value.exit_code == 2
    return [(problem.line, problem.message) for problem in caught.value.problems]


def problems(folder: Path, text: str) -> list[str]:
    return [message for _, message in mistakes(folder, text)]


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
    loaded = load(folder, text)
    assert loaded.path == folder / "fledge.toml"
    assert loaded.strategy == "initramfs"
    assert loaded.format == GzipInitramfs()
    assert loaded.sources == (
        Image(NGINX),
        Busybox("https://example.org/busybox", DIGEST),
        Init(),
        ReleaseAgent(version="v1.2.3", checksum=DIGEST),
        Mappings(
            (
                Placement(b"/etc/app.conf", folder / "app.conf", stat.S_IFREG, 0o644),
                Placement(b"/srv/data", folder / "empty", stat.S_IFDIR, 0o755),
            )
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
    loaded = load(folder, text)
    assert loaded.strategy == "oci_rootfs"
    assert loaded.format == Btrfs(size_buffer_mb=512, preallocate=True)
    assert loaded.sources == (
        Image(NGINX),
        LocalAgent(path=folder / "kestrel"),
        Mappings((Placement(b"/init", folder / "my-init", stat.S_IFREG, 0o755),)),
    )


@pytest.mark.parametrize("tables", ["", "[agent]\n[init]\n[source]\n[mappings]\n"])
def test_defaults_of_an_initramfs(folder: Path, tables: str) -> None:
    loaded = load(folder, INITRAMFS + tables)
    assert loaded.format == GzipInitramfs()
    assert loaded.sources == (Busybox(), Init(), ReleaseAgent(version="latest"), Mappings())


@pytest.mark.parametrize("tables", ["", "[agent]\n[filesystem]\n[mappings]\n"])
def test_defaults_of_a_rootfs(folder: Path, tables: str) -> None:
    loaded = load(folder, OCI_ROOTFS + tables)
    assert loaded.format == Ext4(size_buffer_mb=0, builder="native", preallocate=False)
    assert loaded.sources == (Image(NGINX), ReleaseAgent(version="latest"), Mappings())


@pytest.mark.parametrize(
    ("lines", "agent"),
    [
        ("version = 'v2'", ReleaseAgent(version="v2")),
        ("source_strategy = 'release'", ReleaseAgent()),
        ("source_strategy = 'http'\nurl = 'https://h/k'", HttpAgent(url="https://h/k")),
        ("source_strategy = 'http'\nurl = 'file:///k'", HttpAgent(url="file:///k")),
        (
            "source_strategy = 'http'\nurl = 'HTTP://[::1]:80/k?v=1'",
            HttpAgent(url="HTTP://[::1]:80/k?v=1"),
        ),
        (f"checksum = '{DIGEST.hex.upper()}'", ReleaseAgent(checksum=DIGEST)),
        (f"checksum = '{DIGEST}'", ReleaseAgent(checksum=DIGEST)),
        (f"checksum = 'SHA256:{DIGEST.hex.upper()}'", ReleaseAgent(checksum=DIGEST)),
    ],
)
def test_agent(folder: Path, lines: str, agent: Agent) -> None:
    assert load(folder, f"{INITRAMFS}[agent]\n{lines}").source(Agent) == agent


@pytest.mark.parametrize(
    "line",
    ["init.none = true\nmappings.my-init = '/init'", "init.none = true\nsource.image = 'nginx'"],
)
def test_init_from_a_mapping_or_an_image(folder: Path, line: str) -> None:
    loaded = load(folder, INITRAMFS + line)
    assert loaded.source(Init) == Init(none=True)
    assert loaded.source(Agent) is None


def test_folder_may_go_where_init_mounts(folder: Path) -> None:
    loaded = load(folder, INITRAMFS + "mappings.empty = '/run/app'")
    assert [each.path for each in placements(loaded)] == [b"/run/app"]


@pytest.mark.parametrize("size", [0, 1, MAX_BUFFER_MB])
def test_size_buffer(folder: Path, size: int) -> None:
    loaded = load(folder, f"{OCI_ROOTFS}filesystem.size_buffer_mb = {size}")
    assert loaded.format == Ext4(size_buffer_mb=size)


@pytest.mark.parametrize("toml", ["project/fledge.toml", "project/../project/fledge.toml"])
def test_relative_paths_start_at_the_config(
    folder: Path, monkeypatch: pytest.MonkeyPatch, toml: str
) -> None:
    text = f"{INITRAMFS}init.path = '../my-init'\nmappings.'../app.conf' = '/a'"
    project.write(folder, "project/fledge.toml", text.encode())
    monkeypatch.chdir(folder)
    loaded = config.load(Path(toml))
    assert loaded.source(Init) == Init(Path(toml).parent / "../my-init")
    assert [each.source for each in placements(loaded)] == [Path(toml).parent / "../app.conf"]


def test_absolute_paths(folder: Path) -> None:
    text = f"{INITRAMFS}init.path = '{folder}/my-init'\nmappings.'{folder}/app.conf' = '/a'"
    loaded = load(folder / "empty", text)
    assert loaded.source(Init) == Init(folder / "my-init")
    assert [each.source for each in placements(loaded)] == [folder / "app.conf"]


@pytest.mark.parametrize("mapped", ["./my-init", "empty/../my-init", "link"])
def test_the_same_init_twice_is_no_contradiction(folder: Path, mapped: str) -> None:
    (folder / "link").symlink_to("my-init")
    text = f"{INITRAMFS}init.path = './my-init'\nmappings.'{mapped}' = '/init'"
    assert load(folder, text).source(Init) == Init(folder / "my-init")


def placements(loaded: Config) -> tuple[Placement, ...]:
    mappings = loaded.source(Mappings)
    assert mappings
    return mappings.placements


@pytest.mark.parametrize(
    ("text", "where", "right"),
    [
        ("", "strategy is missing", '"initramfs" or "oci_rootfs"'),
        ("strategy = 'initramf'", 'strategy = "initramf"', 'did you mean "initramfs"?'),
        ("strategy = 'x'", 'strategy = "x"', 'must be "initramfs" or "oci_rootfs"'),
        (
            "strategy = 'oci_rootfs'",
            "[source] image is missing",
            'write image = "nginx:alpine" or dockerfile = "Dockerfile"',
        ),
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
            "/empty: it is a folder, not a regular file",
        ),
        (
            f"agent = {{source_strategy = 'local', path = '{'f' * 300}'}}",
            f'[agent] path = "{"f" * 79}…: ',
            "file name too long",
        ),
        ("agent.checksum = 'abc'", '[agent] checksum = "abc"', "64 hexadecimal digits"),
        (f"agent.checksum = '{DIGEST.hex}0'", f'[agent] checksum = "{DIGEST.hex}0"', "64 hex"),
        (f"agent.checksum = 'md5:{DIGEST.hex}'", "[agent] checksum = ", "64 hex"),
        (
            f"source = {{busybox_url = 'kestrel', busybox_sha256 = '{DIGEST}'}}",
            '[source] busybox_url = "kestrel"',
            'must be a URL and not a path; write "file:///',
        ),
        (
            f"source = {{busybox_url = 'file:./kestrel', busybox_sha256 = '{DIGEST}'}}",
            '[source] busybox_url = "file:./kestrel"',
            'must be a URL and not a path; write "file:///',
        ),
        (
            f"source = {{busybox_url = './gone', busybox_sha256 = '{DIGEST}'}}",
            '[source] busybox_url = "./gone"',
            'must be a URL without spaces that begins with "https://"',
        ),
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
            "/kestrel is also mapped to /init",
        ),
        ("init.none = true", "[init] none = true", "map an executable to it"),
        (
            "init.none = true\nmappings.my-init = '/init/'",
            "[init] none = true",
            "map an executable to it",
        ),
        ("mappings.'app.conf' = '/init'", "[init]", "app.conf is mapped to /init but"),
        ("mappings.empty = '/init'", "[init]", "empty is mapped to /init but"),
        ("[init]\npath = 'my-init'\n[agent]", "[agent]", "only the built-in init starts the agent"),
        (
            "init.none = true\nmappings.my-init = '/init'\nagent.version = 'v1'",
            "[agent]",
            "only the built-in init starts the agent",
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
            '[mappings] app = { conf = "/etc/app.conf" }',
            'quotes: "app.conf"',
        ),
        ("mappings.'/dev/null' = '/x'", '[mappings] "/dev/null" = "/x"', "is a device"),
        (
            "mappings.kestrel = '/tmp/kestrel'",
            '[mappings] kestrel = "/tmp/kestrel": ',
            "/kestrel would be hidden at /tmp/kestrel",
        ),
        (
            "mappings.kestrel = '/./run//'",
            '[mappings] kestrel = "/./run//": ',
            "/kestrel would be hidden at /run/kestrel",
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
        (INITRAMFS + "agent.source_strategy = 'local'\n", "agent.path", MUST_BE_TEXT, "build/k"),
        (INITRAMFS + "agent.source_strategy = 'http'\n", "agent.url", MUST_BE_TEXT, "https://"),
        (INITRAMFS, "agent.checksum", MUST_BE_TEXT, "sha256"),
        (INITRAMFS, "init.path", MUST_BE_TEXT, "my-init"),
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
            "zzz is unknown: known here: agent, archive, cache, filesystem, init, manifest,"
            " mappings, sbom, source, strategy, target, verity, version",
        ),
        ("agent.check_sum = 1", "[agent] check_sum is unknown: did you mean checksum?"),
        ("agent.sha = 1", "[agent] sha is unknown: known here: checksum, path, "),
        ("init.non = true", "[init] non is unknown: did you mean none?"),
        ("source.bysybox_url = 1", "[source] bysybox_url is unknown: did you mean busybox_url?"),
        ("source.'a b' = 1", '[source] "a b" is unknown: known here: build_args, builder, '),
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
        "[agent]: only the built-in init",
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
    found = mistakes(folder, text)
    assert len(found) == len(expected)
    starts = {start for start in expected if any(text.startswith(start) for _, text in found)}
    assert starts == expected
    lines = [line for line, _ in found]
    assert lines == sorted(lines, key=lambda line: line or 0)


def test_lines(folder: Path) -> None:
    text = """# a comment
    version = "1"
    strategy = "initramf"
    source.image = "a b"

    [agent]
    "source_strategy" = '''
    release'''
    checksum = "abc"
    [mappings]
    "app.conf" = "etc"
    kestrel = "/x" # one
    'my-init' = "/x" # two
    [init]
    path = "gone"
    """
    assert [line for line, _ in mistakes(folder, text)] == [3, 4, 6, 7, 9, 11, 13, 15]


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("\n[agent]\nsource_strategy = 'local'", 4, "[agent] path is missing"),
        ("agent.source_strategy = 'local'", 3, "[agent] path is missing"),
        ("agent = {source_strategy = 'local', path = [\n]}", 3, "[agent] path = []"),
        ("[[agent]]\n[[agent]]", 3, "agent = "),
        ("[init]\n[source]\n[agent]\nx = 1", 6, "[agent] x is unknown"),
        ("\n[init]\npath = 'my-init'\n[agent]", 6, "[agent]: only the built-in init"),
        ("[mappings]\nkestrel = '/tmp/x'", 4, '[mappings] kestrel = "/tmp/x": '),
    ],
)
def test_line(folder: Path, text: str, line: int, problem: str) -> None:
    [(found, message)] = mistakes(folder, INITRAMFS + text)
    assert message.startswith(problem)
    assert found == line


def test_what_is_missing_without_a_table_has_no_line(folder: Path) -> None:
    text = "version = '1'\nstrategy = 'oci_rootfs'\nother = 1"
    assert [line for line, _ in mistakes(folder, text)] == [None, 3]


def test_recorded_config_has_no_lines(folder: Path) -> None:
    with pytest.raises(InvalidConfig) as caught:
        config.parse({"version": "1", "strategy": "x", "other": 1}, folder / "fledge.toml")
    assert [problem.line for problem in caught.value.problems] == [None, None]
    assert f"\n  {folder}/fledge.toml: other is unknown" in str(caught.value)


def test_no_terminal_obeys_a_message(folder: Path) -> None:
    text = (
        INITRAMFS
        + r"""
    "\u001b[2J" = 1
    agent.version = ["\u0007\u009b31m\u202e"]
    mappings."\u009b" = "/a"
    """
    )
    with pytest.raises(InvalidConfig) as caught:
        load(folder, text)
    assert all(line.isprintable() for line in str(caught.value).splitlines())
    assert "\\x9b" in str(caught.value)


def test_only_sources_that_go_together(folder: Path) -> None:
    path, image, agent = folder / "fledge.toml", Image(NGINX), ReleaseAgent()
    assert Config(path, Ext4(), (image, agent)).strategy == "oci_rootfs"
    for target, sources, problem in (
        (Ext4(), (image, Init()), "does not accept Init"),
        (Ext4(), (image, Busybox()), "does not accept Busybox"),
        (Ext4(), (agent,), "needs Image"),
        (GzipInitramfs(), (Busybox(), Busybox()), "one of each kind"),
        (GzipInitramfs(), (agent, LocalAgent(path=folder / "kestrel")), "one of each kind"),
        (GzipInitramfs(), (Init(), Busybox()), "not in order"),
        (GzipInitramfs(), (Source(),), "does not accept Source"),
    ):
        with pytest.raises(ValueError, match=problem):
            Config(path, target, sources)


@pytest.mark.parametrize(
    ("raw", "where"),
    [
        (b"version = ", "1:11: version has no value"),
        (b'version = "1"\nstrategy = initramfs\n', "2:12: text needs quotes"),
        (b'version = "1"\r\n[agent\r\n', "2:7: a table begins with its name in brackets"),
        (b'version = "1"\nversion = "1"\n', "2: version is given twice, first on line 1"),
        (b"\0", "1: the file is not text"),
        (b'version = "\0"', "1: the file is not text"),
        (b'\n\nversion = "\xff"', "3: the byte 0xff is not UTF-8"),
        (INITRAMFS.encode("utf-16"), "1: the file is text in UTF-16; save it as UTF-8"),
        (b"\xfe\xff" + INITRAMFS.encode("utf-16-be"), "1: the file is text in UTF-16"),
        (INITRAMFS.encode("utf-16-le"), "1: the file is not text"),
        (b"\x89PNG\r\n\x1a\n\0\0", "1: the file is not text"),
        (b"\x7fELF\x02\0\0", "1: the file is not text"),
        (INITRAMFS.encode() + b"# Gr\xf6\xdfe", "3: the byte 0xf6 is not UTF-8"),
    ],
)
def test_not_toml(folder: Path, raw: bytes, where: str) -> None:
    path = project.write(folder, "fledge.toml", raw)
    with pytest.raises(InvalidConfig) as caught:
        config.load(path)
    [problem] = caught.value.problems
    assert problem.shown(path).startswith(f"{path}:{where}")


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
        (Path.mkdir, "is a folder"),
        (lambda path: path.symlink_to(path), "too many levels of symbolic links"),
        (lambda path: path.write_bytes(b"#" * (MAX_TOML_SIZE + 1)), "larger than 1048576 bytes"),
        (lambda path: path.symlink_to("/dev/zero"), "it is a device, not a regular file"),
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
    assert mistakes(folder, "") == [
        (None, 'version is missing: write version = "1"'),
        (None, 'strategy is missing: write strategy = "initramfs" or "oci_rootfs"'),
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
    assert problem in str(caught.value)


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


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(KEYS), st.sampled_from(VALUES)))
def test_any_config_is_read_or_explained(folder: Path, lines: dict[str, str]) -> None:
    text = "\n".join(f"{key} = {value}" for key, value in lines.items())
    try:
        load(folder, text)
    except InvalidConfig as error:
        assert all(error.problems)
