"""The mistakes that people make in fledge.toml, and what they read."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fledge.cpio.format import GzipInitramfs
from fledge.disks.loopfs.format import Xfs
from fledge.ext4.format import Ext4
from fledge.oci import reference
from fledge.project import config
from fledge.project.config import Config
from fledge.project.toml import MAX_PROBLEMS, InvalidConfig
from fledge.sources.agent import HttpAgent, LocalAgent, ReleaseAgent
from fledge.sources.image import Image
from fledge.sources.source import Source
from tests.support import project, screen

TOP = 'version = "1"\nstrategy = "initramfs"\n'
MAPPINGS = TOP + "[mappings]\n"
AGENT = TOP + "[agent]\n"
LOCAL = AGENT + 'source_strategy = "local"\n'
DISK = 'version = "1"\nstrategy = "oci_rootfs"\n[source]\nimage = "nginx"\n[filesystem]\n'

NOT_TOML = [
    # A key or table given twice.
    (TOP + '# x\nversion = "1"', "4: version is given twice, first on line 1; keep one"),
    (AGENT + "[agent]", "4: [agent] is given twice, first on line 3; put all its keys below"),
    (MAPPINGS + '"a.b" = "/x"\n"a.b" = "/y"', '5: mappings."a.b" is given twice, first on line 4'),
    (MAPPINGS + 'a = "/x"\na = """\n/y"""\n', "5: mappings.a is given twice, first on line 4"),
    (TOP + 'agent.version = "v1"\n[agent]', "4: [agent] is given twice, first on line 3"),
    (TOP + 'agent = {version = "v1"}\n[agent]', "4: [agent] is given twice, first on line 3"),
    (TOP + 'x = {a = 1, a = 2, "\\q" = 1}', "3: x.a is given twice, first on line 3"),
    (TOP + "agent = {path = 1, path = 2}", "3: agent.path is given twice, first on line 3"),
    (TOP + 'x = 1\nx = {version = "v1"}', "4: x is given twice, first on line 3"),
    (TOP + 'agent = "v1"\nagent.version = "v1"', "4: agent is complete on line 3; write agent.ver"),
    # Text without quotes, and words of other languages.
    ("version = 1.0.0", '1:14: text needs quotes: version = "1.0.0"'),
    (AGENT + "version = v1.2.3 # new", '4:11: text needs quotes: version = "v1.2.3"'),
    (DISK + "type = ext4", '6:8: text needs quotes: type = "ext4"'),
    (AGENT + "path = /a b", '4:8: text needs quotes: path = "/a b"'),
    (AGENT + "url = https://h/x", '4:7: text needs quotes: url = "https://h/x"'),
    (AGENT + f"checksum = 9{'a' * 63}", f'4:13: text needs quotes: checksum = "9{"a" * 63}"'),
    (MAPPINGS + "app.conf = /etc/x", '4:12: text needs quotes: "app.conf" = "/etc/x"'),
    (MAPPINGS + 'payload/x = "/x"', '4:8: this key needs quotes: "payload/x" = …'),
    (MAPPINGS + "a = \\x", "4:5: text needs quotes: a = '\\x'"),
    (TOP + "init.none = True", "3:13: init.none = True: write true"),
    (TOP + "init.none = yes", "3:13: init.none = yes: write true"),
    (TOP + "init.none = FALSE", "3:13: init.none = FALSE: write false"),
    (AGENT + "checksum = None", "4:12: checksum = None: there is no such value; remove the line"),
    (AGENT + "checksum = null", "4:12: checksum = null: there is no such value; remove the line"),
    (AGENT + "version =", "4:10: version has no value; write it behind ="),
    (AGENT + "version = ${TAG}", "4:11: version = ${TAG}: text needs quotes, and only a few keys"),
    (AGENT + "version = {{ tag }}", "4:12: this is not TOML: invalid initial character"),
    (DISK + "size_buffer_mb = 5GB", "6:19: size_buffer_mb = 5GB: write the number alone"),
    (DISK + "size_buffer_mb = 64 MiB", "6:21: size_buffer_mb = 64 MiB: write the number alone"),
    (DISK + "size_buffer_mb = 1,024", "6:19: size_buffer_mb = 1,024: write 1024, without separat"),
    (DISK + "size_buffer_mb = 064", "6:19: size_buffer_mb = 064: write 64, without zeros before"),
    # Quotes.
    ('version = "1\nstrategy = "x"', '1:13: version: the " has no closing "'),
    ("version = '1\nstrategy = 'x'", "1:13: version: the ' has no closing '"),
    ("version = \"1'", '1:14: version: the " has no closing "'),
    ('version = "1""', "1:14: version: a quote too many"),
    (MAPPINGS + '"a = "/etc/a"', '4:7: a " has no closing "'),
    (AGENT + 'version = """v1\n\n[mappings]', '4: the """ has no closing """'),
    ("version = \u201c1\u201d", '1:11: \u201c is a curly quote; write a straight one: "'),
    ("version = \u20181\u2019", "1:11: \u2018 is a curly quote; write a straight one: '"),
    (MAPPINGS + '\u201ca\u201d = "/a"', '4:1: \u201c is a curly quote; write a straight one: "'),
    ('version = "1\u201d', "1:13: version: a curly quote (\u201d) does not close the text"),
    ("version = `1`", "1:11: a backtick; write a straight one: '"),
    # Backslashes.
    (LOCAL + 'path = "C:\\Users\\me\\x"', '5:13: path: a \\ in "…" begins an escape; write / in'),
    (LOCAL + 'path = "build\\kestrel"', '5:16: path: a \\ in "…" begins an escape; write / in'),
    (MAPPINGS + '"app\\.conf" = "/x"', '4:7: a \\ in "…" begins an escape; write / in a path'),
    # Characters that look like others, or like nothing.
    ('version\u00a0= "1"', "1:8: an invisible character, no-break space (U+00A0); type a plain sp"),
    ('version =\u00a0"1"', "1:10: an invisible character, no-break space (U+00A0)"),
    (AGENT + '\u00a0version = "v1"', "4:1: an invisible character, no-break space (U+00A0)"),
    (AGENT + 'version = "v1"\u200b', "4:15: an invisible character, zero width space (U+200B); r"),
    (TOP + "\ufeff[agent]", "3:1: an invisible character, zero width no-break space (U+FEFF)"),
    ('version \uff1d "1"', "1:9: fullwidth equals sign (U+FF1D); write ="),
    (AGENT + "gr\u00f6n = 1", "4:3: \u00f6 in a key needs quotes around the key"),
    ('version = "1\x01"', "1:13: version: a control character in text; remove it"),
    # Other languages.
    ("# x\nversion: 1\nagent:\n  version: v1", "2: the file is YAML, not TOML"),
    ("---\nversion: 1", "1: the file is YAML, not TOML"),
    (MAPPINGS + "- a: /b", '4:3: a list of YAML; write key = "value" on each line'),
    ('version = "1"\nstrategy: "x"', "2:9: write = for : , and text in quotes"),
    (TOP + 'agent = {version: "v1"}', "3:17: write = for : , and text in quotes"),
    ('{\n  "version": "1"\n}', "1: the file is JSON, not TOML"),
    ('[{"version": "1"}]', "1: the file is JSON, not TOML"),
    ("\n<!DOCTYPE html>\n<html>", "2: the file is HTML or XML, not TOML"),
    ("FROM nginx\nCOPY a /b", "1: the file is a Dockerfile, not TOML"),
    ("export VERSION=1", '1:8: export VERSION=1 is not key = "value"'),
    ("// x\nversion = 1", "1:1: a comment begins with #"),
    ("; x\nversion = 1", "1:1: a comment begins with #"),
    ('version = "1" // x', "1:15: a comment begins with #"),
    ('version = "1";', "1:14: remove ; at the end of the line"),
    ('version = "1",', "1:14: remove , at the end of the line"),
    ('version = "1" strategy = "x"', '1:15: strategy = "x" needs a line of its own'),
    ('version == "1"', "1:10: write = alone between key and value"),
    ('version := "1"', "1:9: write = alone between key and value"),
    (MAPPINGS + '"a" => "/b"', "4:6: write = alone between key and value"),
    (MAPPINGS + '"a" -> "/b"', "4:5: write = alone between key and value"),
    ('version "1"', '1:9: version "1" is not key = "value"'),
    (TOP + "agent {\n}", "3:7: write [agent] on a line, and its keys below it"),
    (TOP + "<<<<<<< HEAD\n[agent]", "3: a conflict marker of git; keep one of the two versions"),
    # Brackets.
    (TOP + "[agent\nversion = 1", "3:7: a table begins with its name in brackets, alone on a line"),
    (TOP + "[my agent]", '3:5: a table begins with its name in brackets, alone on a line: ["my ag'),
    (TOP + "[]", "3:2: a table begins with its name in brackets, alone on a line: [name]"),
    (TOP + "[agent]:", "3:8: only a comment may follow [agent] on its line"),
    (AGENT + 'version = ["v1"\nurl = 1', "4: agent.version: a ] is missing at the end"),
    (TOP + "agent = {path = 1\n[source]", "3: agent.path: a } is missing at the end"),
    ('version = "1"\rstrategy = "x"\r', "1: lines end in a carriage return alone"),
]

TOP_OF_FILE = "it belongs at the top of the file, above every [table]"

NOT_MEANT = [
    # Keys in the wrong table.
    (
        '[agent]\nversion = "1"\nstrategy = "initramfs"',
        [
            '2: [agent] version = "1": ' + TOP_OF_FILE,
            '3: [agent] strategy = "initramfs": ' + TOP_OF_FILE,
        ],
    ),
    (
        '[mappings]\n"app.conf" = "/a"\nversion = "1"\nstrategy = "initramfs"',
        [
            '3: [mappings] version = "1": ' + TOP_OF_FILE,
            '4: [mappings] strategy = "initramfs": ' + TOP_OF_FILE,
        ],
    ),
    (
        AGENT + 'busybox_url = "https://h/x"',
        ["4: [agent] busybox_url is unknown: it belongs in [source]"],
    ),
    (
        TOP + '[source]\nversion = "v0.4.1"',
        ["4: [source] version is unknown: " + TOP_OF_FILE + ", or in [agent]"],
    ),
    (
        'version = "1"\nstrategy = "oci_rootfs"\n[source]\nimage = "https://r.io/app"',
        [
            '4: [source] image = "https://r.io/app": https: is a transport of other tools.'
            " Write docker://r.io/app."
        ],
    ),
    (TOP + 'image = "nginx"', ["3: image is unknown: it belongs in [source]"]),
    (
        TOP + '[source]\npath = "x"',
        ["4: [source] path is unknown: it belongs in [init] or [agent]"],
    ),
    (TOP + "size_buffer_mb = 5", ["3: size_buffer_mb is unknown: it belongs in [filesystem]"]),
    (TOP + "[Agent]", ["3: Agent is unknown: did you mean agent?"]),
    (TOP + "[MAPPINGS]", ["3: MAPPINGS is unknown: did you mean mappings?"]),
    (
        DISK + "SIZE-BUFFER-MB = 5",
        ["6: [filesystem] SIZE-BUFFER-MB is unknown: did you mean size_b"],
    ),
    # Values.
    (DISK + 'type = "EXT4"', ['6: [filesystem] type = "EXT4": did you mean "ext4"?']),
    (DISK + 'type = " xfs"', ['6: [filesystem] type = " xfs": did you mean "xfs"?']),
    (
        'version = "1"\nstrategy = "OCI-RootFS"',
        ['2: strategy = "OCI-RootFS": did you mean "oci_rootfs"?'],
    ),
    (
        DISK + 'size_buffer_mb = "50"',
        ['6: [filesystem] size_buffer_mb = "50": write 50, a whole number from 0 to 16'],
    ),
    (
        DISK + "size_buffer_mb = 50.0",
        ["6: [filesystem] size_buffer_mb = 50.0: write 50, a whole number from 0 to 16777216"],
    ),
    (
        DISK + 'size_buffer_mb = "5GB"',
        ['6: [filesystem] size_buffer_mb = "5GB": must be a whole number from 0 to 1677'],
    ),
    (
        "version = 1\nstrategy = 'initramfs'",
        ['1: version = 1: must be text in quotes, such as "1"'],
    ),
    # Paths.
    (
        MAPPINGS + '"/etc/app.conf" = "app.conf"',
        [
            '4: [mappings] "/etc/app.conf" = "app.conf": source and destination are swapped;'
            ' write "app.conf" = "/etc/app.conf"'
        ],
    ),
    (
        MAPPINGS + '"/etc/none" = "none"',
        ['4: [mappings] "/etc/none" = "none": source and destination are swapped; write "no'],
    ),
    (
        MAPPINGS + '"/etc" = "etc"',
        ['4: [mappings] "/etc" = "etc": the destination must be absolute; write "/etc"'],
    ),
]

NO_FILES = [
    ("payload/*", "* is not expanded; name a folder, or each file"),
    ("payload/**/*.conf", "* is not expanded; name a folder, or each file"),
    ("app.con?", "? is not expanded; name a folder, or each file"),
    ("app.[ch]", "[ch] is not expanded; name a folder, or each file"),
    ("app.{c,h}", "{c,h} is not expanded; name a folder, or each file"),
    ("~/app.conf", "~ is not expanded; write the whole path"),
    ("$HOME/app.conf", "$HOME is not expanded; write the whole path"),
    ("x/${HOME}/app.conf", "${HOME} is not expanded; write the whole path"),
    ("%USERPROFILE%/app.conf", "%USERPROFILE% is not expanded; write the whole path"),
    ("payload\\tool", "folders are separated by /, not by \\"),
    ("payload\tool", 'a \\ in "…" begins an escape, here of a control character; write /'),
    ("C:\\tool", "C: is a drive of Windows; write a path of this machine"),
    ("C:/tool", "C: is a drive of Windows; write a path of this machine"),
    ("https://h/tool", "https:// begins a URL; write the path of a file"),
    ("app.conf ", "the path begins or ends with a space"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a fledge.toml, with a file."""
    project.write(tmp_path, "app.conf", b"plain")
    return tmp_path


def told(folder: Path, text: str) -> list[str]:
    """Return the problems of a fledge.toml, each with its line."""
    path = project.write(folder, "fledge.toml", text.encode())
    with pytest.raises(InvalidConfig) as caught:
        config.load(path)
    return [problem.shown(Path()).removeprefix(".:") for problem in caught.value.problems]


@pytest.mark.parametrize(("text", "expected"), NOT_TOML)
def test_not_toml(folder: Path, text: str, expected: str) -> None:
    [problem] = told(folder, text)
    assert problem.startswith(expected)
    assert told(folder, text.replace("\n", "\r\n")) == [problem]


@pytest.mark.parametrize(("text", "expected"), NOT_MEANT)
def test_not_meant(folder: Path, text: str, expected: list[str]) -> None:
    found = told(folder, text)
    assert len(found) == len(expected)
    assert all(map(str.startswith, found, expected))


@pytest.mark.parametrize(("path", "why"), NO_FILES)
def test_no_file(folder: Path, path: str, why: str) -> None:
    quoted = path.replace("\\", "\\\\").replace("\t", "\\t")
    [mapped] = told(folder, MAPPINGS + f'"{quoted}" = "/a"')
    assert mapped.endswith(f'= "/a": no such file or folder; {why}')
    [local] = told(folder, LOCAL + f'path = "{quoted}"')
    why = "write the value, or use --set" if "${" in path else f"no such file; {why}"
    assert local.endswith(why)


def test_a_file_may_have_such_a_name(folder: Path) -> None:
    project.write(folder, "*$x~ ", b"")
    project.write(folder, "fledge.toml", (MAPPINGS + '"*$x~ " = "/a"').encode())
    config.load(folder / "fledge.toml")


def test_a_byte_order_mark_is_no_mistake(folder: Path) -> None:
    raw = b"\xef\xbb\xbf" + TOP.replace("\n", "\r\n").encode()
    assert config.load(project.write(folder, "fledge.toml", raw)).strategy == "initramfs"


@pytest.mark.slow
def test_as_a_person_sees_it(folder: Path) -> None:
    project.write(folder, "fledge.toml", (AGENT + "version = v1.2.3\n").encode())
    shown = screen.run([sys.executable, "-m", "fledge", "check"], folder, columns=80)
    assert shown.code == 2
    assert shown.lines == [
        "error: fledge.toml has a problem:",
        '  fledge.toml:4:11: text needs quotes: version = "v1.2.3"',
    ]


@pytest.mark.parametrize(
    "lines",
    [
        [f"[t{number}]" for number in range(2000)],
        [f"strateg{number} = 1" for number in range(2000)],
        ["[mappings]", *(f'n{number} = "/{"x" * 90}"' for number in range(2000))],
    ],
    ids=["tables", "keys", "mappings"],
)
def test_only_the_first_problems_are_shown(folder: Path, lines: list[str]) -> None:
    path = project.write(folder, "fledge.toml", (TOP + "\n".join(lines)).encode())
    with pytest.raises(InvalidConfig) as caught:
        config.load(path)
    first, *shown = str(caught.value).splitlines()
    assert first.endswith(f"has 2000 problems, of which these are the first {MAX_PROBLEMS}:")
    assert len(shown) == MAX_PROBLEMS
    assert len(caught.value.problems) == 2000
    assert all(len(line) < 500 for line in shown)


@pytest.mark.parametrize("text", [f'"{"k" * 100_000}" = 1', f"[{'k' * 100_000}]"])
def test_long_keys_are_cut(folder: Path, text: str) -> None:
    [problem] = told(folder, TOP + text)
    assert len(problem) < 300


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        *("x" + " " * 900_000, " " * 900_000 + "x", "\n" * 900_000 + "x", "[" * 900_000),
        *('"' * 900_000, "a = " + "y " * 400_000, "#\n" * 400_000 + "x", "\\" * 900_000),
        "\n".join(f"k{number} = 1" for number in range(20_000)) + "\nk5 = 1",
    ],
    ids=lambda text: text[:3],
)
def test_large_files_are_explained(folder: Path, text: str) -> None:
    [problem] = told(folder, text)
    assert len(problem) < 300


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data())
def test_any_text_is_read_or_explained(folder: Path, data: st.DataObject) -> None:
    """Take a piece out of a text with mistakes, or put one in."""
    text, _ = data.draw(st.sampled_from(NOT_TOML))
    start, end = sorted(data.draw(st.tuples(*[st.integers(0, len(text))] * 2)))
    piece = data.draw(st.text("=[]{}\"'\\.,:#\n\r\t ax1\u00a0\u201c$<-", max_size=4))
    path = project.write(folder, "fledge.toml", (text[:start] + piece + text[end:]).encode())
    try:
        config.load(path)
    except InvalidConfig as error:
        assert all(problem.message for problem in error.problems)


# Configs that no file describes.


NGINX = Image(reference.Name("docker.io", "library/nginx", "alpine"))


@pytest.mark.parametrize(
    ("format_", "source", "problem"),
    [
        (Ext4(size_buffer_mb=-50), NGINX, "size_buffer_mb = -50: must be a whole number from 0"),
        (Ext4(size_buffer_mb=1 << 25), NGINX, "size_buffer_mb = 33554432: must be a whole number"),
        (Xfs(size_buffer_mb="5"), NGINX, "size_buffer_mb = '5': write 5"),  # type: ignore[arg-type]
        (Ext4(builder="cp"), NGINX, "builder = 'cp': must be"),  # type: ignore[arg-type]
        (Ext4(preallocate=1), NGINX, "preallocate = 1: must be true"),  # type: ignore[arg-type]
        (Ext4(), Image("nginx"), "reference = 'nginx': must be an image"),  # type: ignore[arg-type]
        (GzipInitramfs(), LocalAgent(path="x"), "path = 'x': must be the path"),  # type: ignore[arg-type]
        (GzipInitramfs(), HttpAgent(url="x"), "url = 'x': must be a URL"),
        (GzipInitramfs(), ReleaseAgent(version=" "), "version = ' ': must be text"),
        (GzipInitramfs(), ReleaseAgent(checksum="a"), "checksum = 'a': must be a"),  # type: ignore[arg-type]
    ],
)
def test_a_config_holds_only_what_a_file_can_say(
    format_: msgspec.Struct, source: Source, problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        Config(Path("fledge.toml"), format_, (source,))  # type: ignore[arg-type]
