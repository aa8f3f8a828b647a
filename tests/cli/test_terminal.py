"""What a person sees on a terminal, moment by moment."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.support import images, project, screen, tars
from tests.support.httpd import Answer, Exchange, Server, status
from tests.support.oci_registry import OciRegistry
from tests.support.project import Fledge

pytestmark = pytest.mark.slow

FLEDGE = [sys.executable, "-m", "fledge"]

RICH = {"lowest": "rich==13.7.0", "newest": "rich"}
"""The versions that pyproject.toml allows."""

LAYERS = 6

PIECES = 10


@pytest.fixture(scope="session", params=RICH)
def rich(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a version of rich, to go before the one that is installed."""
    folder = tmp_path_factory.mktemp(f"rich-{request.param}")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(folder)]
    subprocess.run([*pip, RICH[request.param]], check=True)
    return str(folder)


def slowly(body: bytes, pause: float) -> Answer:
    def answer(exchange: Exchange) -> None:
        exchange.send_response(200)
        exchange.send_header("Content-Length", str(len(body)))
        exchange.end_headers()
        size = len(body) // PIECES + 1
        for start in range(0, len(body), size):
            exchange.wfile.write(body[start : start + size])
            exchange.wfile.flush()
            time.sleep(pause)

    return answer


@pytest.fixture
def slow_image(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A project whose image has six layers, in a registry that takes its time.

    The parameter is the name of the image.
    """
    name = getattr(request, "param", "six")
    layers = [
        tars.pack(tars.file(f"layer{number}", os.urandom(300_000 + 50_000 * number)))
        for number in range(LAYERS)
    ]
    image = images.image(*layers)
    with Server() as server:
        host = server.url("").removeprefix("http://")
        server.answers["/v2/"] = status(200, b"{}")
        head = {"Content-Type": image.media_type}
        for tag in ("latest", f"sha256:{image.sha256}"):
            server.answers[f"/v2/{name}/manifests/{tag}"] = status(200, image.body, head)
        config, *blobs = image.blobs
        server.answers[f"/v2/{name}/blobs/sha256:{images.sha256(config)}"] = status(200, config)
        for number, blob in enumerate(blobs):
            path = f"/v2/{name}/blobs/sha256:{images.sha256(blob)}"
            server.answers[path] = slowly(blob, 0.04 + 0.01 * number)
        project.write(tmp_path, "kestrel", project.program())
        project.write(
            tmp_path,
            "fledge.toml",
            f'version = "1"\nstrategy = "oci_rootfs"\n[source]\nimage = "{host}/{name}"\n'
            f"{project.LOCAL_AGENT}".encode(),
        )
        yield tmp_path


@pytest.mark.real
@pytest.mark.parametrize("columns", [100, 80, 40])
def test_several_layers_at_once(slow_image: Path, rich: str, columns: int) -> None:
    command = [*FLEDGE, "build", "-o", "six.img"]
    shown = screen.run(command, slow_image, {"PYTHONPATH": rich}, columns=columns)
    assert shown.code == 0, shown.text
    assert "Error" not in shown.text
    assert shown.cursor_visible
    assert [line for line in shown.lines if "━" in line or "/6 layers" in line] == []
    bar = re.compile(r"    \S.* [\d.]+/[\d.]+ (MiB|KiB)")
    bars = [sum(bool(bar.match(line)) for line in moment) for moment in shown.moments]
    assert 2 <= max(bars) <= 4, shown.moments[5:9]
    whole = re.compile(r"^  . image     (\d)/6 layers, ([\d.]+)/([\d.]+) MiB")
    seen = [[match for line in moment if (match := whole.match(line))] for moment in shown.moments]
    assert max(map(len, seen)) == 1
    progress = [(int(each[0][1]), float(each[0][2])) for each in seen if each]
    # How many moments are drawn depends on the load of the machine.
    assert progress == sorted(progress)
    assert progress[0] < progress[-1]
    assert all(len(line) < columns for moment in shown.moments for line in moment if "/6" in line)


@pytest.mark.real
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("ready", [0, 2, 4])
def test_interrupted_in_the_middle(
    slow_image: Path, rich: str, ready: int, number: signal.Signals
) -> None:
    def middle(lines: list[str]) -> int | None:
        whole = re.search(r"(\d)/6 layers", "".join(lines))
        return number if whole and int(whole[1]) >= ready else None

    command = [*FLEDGE, "build", "-o", "six.img"]
    shown = screen.run(command, slow_image, {"PYTHONPATH": rich}, interrupt=middle)
    assert shown.code == -number
    assert shown.cursor_visible
    assert shown.lines == [
        "  ✗ image",
        "error: interrupted; nothing was written",
        "  What was transferred is kept; the next run continues there.",
    ]


@pytest.mark.parametrize("columns", [100, 40])
def test_inspect_shows_what_it_reads(tmp_path: Path, columns: int) -> None:
    toml = project.make_rootfs(tmp_path)
    toml.write_text(toml.read_text().replace("size_buffer_mb = 8", "size_buffer_mb = 512"))
    assert (
        subprocess.run([*FLEDGE, "build", "-o", "a.img"], cwd=tmp_path, check=False).returncode == 0
    )
    shown = screen.run([*FLEDGE, "inspect", "a.img"], tmp_path, columns=columns)
    assert any(line.startswith("    reading a.img ") for each in shown.moments for line in each)
    assert shown.lines[0] == "a.img"
    assert shown.code == 0
    assert shown.cursor_visible


@dataclass(frozen=True)
class Appearance:
    """A terminal, and what is on it while six layers are pulled and after Ctrl-C."""

    columns: int
    environment: dict[str, str]
    encoding: str
    step: str
    """A pattern for the line of the step."""
    transfer: str
    """A pattern for the line of each transfer."""
    after: list[str]


ASCII_ONLY = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}

BYTES = r"[\d.]+/[\d.]+ [KM]iB"
STEP = rf"  [⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏] image     [0-5]/6 layers, {BYTES}"
LEFT = r", \d:\d\d:\d\d left"
TRANSFER = rf"    six layer [1-6] of 6 ━*╌* {BYTES}  [\d.]+ [KM]iB/s  \d:\d\d:\d\d"
INTERRUPTED = [
    "  ✗ image",
    "error: interrupted; nothing was written",
    "  What was transferred is kept; the next run continues there.",
]
WIDE = Appearance(100, {}, "utf-8", STEP + LEFT, TRANSFER, INTERRUPTED)
DUMB = replace(
    WIDE,
    environment={"TERM": "dumb"},
    step="  … image",
    transfer="",
    after=["  … image", "^C  ✗ image", *INTERRUPTED[1:]],
)
APPEARANCES = {
    "100 columns": WIDE,
    "80 columns": replace(WIDE, columns=80),
    "40 columns": replace(
        WIDE,
        columns=40,
        step=STEP,
        transfer=rf"    six layer [1-6] of 6 {BYTES}",
        after=[
            *INTERRUPTED[:2],
            "  What was transferred is kept; the next",
            "  run continues there.",
        ],
    ),
    "NO_COLOR": replace(WIDE, environment={"NO_COLOR": "1"}),
    "C locale": replace(WIDE, environment={"LC_ALL": "C"}),
    "ASCII": replace(
        WIDE,
        environment=ASCII_ONLY,
        encoding="ascii",
        step=(STEP + LEFT).replace("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏", r"|/\\-"),
        transfer=TRANSFER.replace("━*╌*", "#*-*"),
        after=["  failed image", *INTERRUPTED[1:]],
    ),
    "dumb": DUMB,
    "dumb, ASCII": replace(
        DUMB,
        environment={"TERM": "dumb", **ASCII_ONLY},
        encoding="ascii",
        step=r"  \.\.\. image",
        after=["  ... image", "^C  failed image", *INTERRUPTED[1:]],
    ),
}


@pytest.mark.real
@pytest.mark.parametrize("name", APPEARANCES)
def test_ctrl_c_during_a_pull(slow_image: Path, rich: str, name: str) -> None:
    """The lowest and the newest rich, on every kind of terminal."""
    terminal = APPEARANCES[name]
    middle: list[str] = []
    transfers = 4 if terminal.transfer else 0

    def interrupt(lines: list[str]) -> int | None:
        if len(lines) != 1 + transfers or not re.fullmatch(terminal.step, lines[0]):
            return None
        if not all(re.fullmatch(terminal.transfer, line) for line in lines[1:]):
            return None
        partial = (slow_image / "cache" / "partial").glob("*")
        if not any(each.stat().st_size for each in partial):
            return None  # on a dumb terminal nothing else tells that a transfer has begun
        middle.extend(lines)
        return signal.SIGINT

    shown = screen.run(
        [*FLEDGE, "build", "-o", "six.img"],
        slow_image,
        {
            "PYTHONPATH": rich,
            "FLEDGE_CACHE_DIR": str(slow_image / "cache"),
            **terminal.environment,
        },
        columns=terminal.columns,
        encoding=terminal.encoding,
        interrupt=interrupt,
    )
    assert middle, shown.moments
    assert shown.code == -signal.SIGINT
    assert shown.lines == terminal.after
    assert shown.cursor_visible
    assert all(len(line) < terminal.columns for line in middle)
    if name in ("NO_COLOR", "dumb", "dumb, ASCII"):
        assert not re.search(r"\x1b\[[\d;]*3\d[\d;]*m", shown.text)
    if name.startswith("dumb"):
        assert "\x1b" not in shown.text


@pytest.mark.real
@pytest.mark.parametrize("slow_image", ["a-team/with-quite-a-long-name/six"], indirect=True)
def test_the_terminal_shows_ctrl_c_behind_a_full_line(slow_image: Path, rich: str) -> None:
    """It would begin a new line that the display knows nothing of."""

    def full(lines: list[str]) -> int | None:
        # The longest numbers, behind a label that is cut to what they leave.
        is_full = lines and re.fullmatch(r"    ….* \d{3}\.\d/\d{3}\.\d KiB", lines[-1])
        return signal.SIGINT if is_full else None

    command = [*FLEDGE, "build", "-o", "six.img"]
    shown = screen.run(command, slow_image, {"PYTHONPATH": rich}, columns=40, interrupt=full)
    assert any("^C" in line for moment in shown.moments for line in moment)
    assert shown.lines == APPEARANCES["40 columns"].after
    assert shown.cursor_visible


def test_a_failure_in_colour(tmp_path: Path) -> None:
    coloured = screen.run([*FLEDGE, "check"], tmp_path)
    assert "\x1b[31m\x1b[1merror: \x1b[0mfledge.toml" in coloured.text


@pytest.mark.parametrize(
    "environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}, {"TERM": "dumb", **ASCII_ONLY}]
)
def test_without_colour(slow_image: Path, environment: dict[str, str]) -> None:
    colour = re.compile(r"\x1b\[[\d;]*3\d[\d;]*m")
    failed = screen.run([*FLEDGE, "check", "-c", "nope"], slow_image, environment)
    assert "\x1b" not in failed.text
    built = screen.run([*FLEDGE, "build", "-o", "six.img"], slow_image, environment)
    assert built.code == 0
    assert not colour.search(built.text)
    if environment.get("TERM") == "dumb":
        assert "\x1b" not in built.text
        assert any(line.split()[1:2] == ["image"] for line in built.lines)


def test_an_ascii_terminal(slow_image: Path) -> None:
    command = [*FLEDGE, "build", "-o", "six.img"]
    shown = screen.run(command, slow_image, ASCII_ONLY, encoding="ascii")
    assert shown.code == 0
    assert "\\" not in shown.text.replace("  \\ ", "")  # but for the turning bar
    assert any("#" in line and "-" in line for moment in shown.moments for line in moment)
    assert [line.split()[:2] for line in shown.lines[:4]] == [
        ["ok", name] for name in ("image", "agent", "mappings", "write")
    ]
    # It did not scroll: nothing is left of what the display drew.
    assert len(shown.lines) == 7


@pytest.mark.parametrize("columns", [100, 80, 60, 40])
def test_lines_are_broken_between_words(slow_image: Path, columns: int) -> None:
    shown = screen.run([*FLEDGE, "build", "-o", "six.img"], slow_image, columns=columns)
    text = "\n".join(shown.lines)
    assert text.count("six.img") == 1  # once, although it is printed for scripts, too
    image = re.escape((slow_image / "fledge.toml").read_text().split('"')[5])
    uri = f"{image}:latest@sha256:[0-9a-f]{{12}}, 6"
    if columns == 40:  # less than the reference: the terminal itself breaks it
        assert re.match("  ✓ image\n      127", text)
    else:
        assert re.match(f"  ✓ image{'     ' if columns > 60 else chr(10) + '      '}{uri}", text)
    if columns > 64:
        assert re.search("^  sha256 [0-9a-f]{64}$", text, re.MULTILINE)


@pytest.mark.parametrize("columns", [80, 40])
def test_a_message_is_broken_between_words(tmp_path: Path, columns: int) -> None:
    shown = screen.run([*FLEDGE, "check"], tmp_path, columns=columns)
    assert " ".join(" ".join(shown.lines).split()) == (
        "error: fledge.toml: no such file Run fledge in a folder with a fledge.toml, or name one"
        " with -c FILE."
    )
    assert all(len(line) <= columns for line in shown.lines)


def test_a_url_is_told_once(fledge: Fledge, tmp_path: Path) -> None:
    binary = project.busybox()
    with Server() as server:
        url = server.url("/busybox")
        server.answers["/busybox"] = status(503)
        project.make(tmp_path, project.LOCAL_AGENT, project.source(url, binary))
        err = fledge("build").err
    notes = [line for line in err.splitlines() if "trying again" in line]
    assert len(notes) > 2
    assert sum(url in line for line in notes) == 1


TERMINALS: dict[str, tuple[int, dict[str, str], str]] = {
    "80 columns": (80, {}, "✓"),
    "120 columns": (120, {}, "✓"),
    "dumb": (80, {"TERM": "dumb"}, "✓"),
    "NO_COLOR": (80, {"NO_COLOR": "1"}, "✓"),
    "C locale": (80, ASCII_ONLY, "ok"),
}
"""The columns of each terminal, its variables, and the sign of what is done."""


@pytest.mark.parametrize("name", TERMINALS)
def test_push_and_pull(served: OciRegistry, web: Path, tmp_path: Path, name: str) -> None:
    columns, environment, done = TERMINALS[name]
    reference = f"{served.host}/web:1"

    def shown(*command: str) -> list[str]:
        encoding = "ascii" if done == "ok" else "utf-8"
        found = screen.run(
            [*FLEDGE, *command], web.parent, environment, columns=columns, encoding=encoding
        )
        assert found.code == 0
        assert all(len(line) <= columns for line in found.lines)
        dumb = environment.get("TERM") == "dumb"
        assert ("\x1b" in found.text) == (not dumb)
        if dumb:
            assert found.lines[0] == f"  … {command[0]}"
        return found.lines[1:] if dumb else found.lines

    line, *pushed = shown("push", web.name, reference)
    assert re.fullmatch(
        rf"  {done} push      web\.img, 5\.0 MiB sent, 10 of 10 chunks new  \d+\.\d\d s", line
    )
    assert re.fullmatch(rf"{re.escape(reference)}@sha256:[0-9a-f]{{64}}", "".join(pushed))
    (tmp_path / "copy").mkdir()
    line, *pulled = shown("pull", reference, "-o", str(tmp_path / "copy"))
    assert re.match(rf"  {done} pull      web\.img, ", line)
    assert "".join(pulled[-2:]).endswith(str(tmp_path / "copy" / "web.img"))


@pytest.mark.parametrize("name", TERMINALS)
def test_diff(tmp_path: Path, name: str) -> None:
    columns, environment, done = TERMINALS[name]
    toml = project.make_rootfs(tmp_path)
    mapped = next(path for path in tmp_path.glob("payload/*") if path.is_file())
    for artifact in ("a.img", "b.img"):
        subprocess.run(
            [*FLEDGE, "build", "-q", "-c", toml, "-o", artifact], cwd=tmp_path, check=True
        )
        mapped.write_bytes(mapped.read_bytes() + b"more")
    encoding = "ascii" if done == "ok" else "utf-8"
    shown = screen.run(
        [*FLEDGE, "diff", "a.img", "b.img"],
        tmp_path,
        environment,
        columns=columns,
        encoding=encoding,
    )
    assert shown.code == 1
    arrow = "->" if done == "ok" else "→"
    assert re.fullmatch(
        "1 path differs"
        "  first different byte at 1128"
        f"  superblock uuid: [0-9a-f]{{32}} {arrow} [0-9a-f]{{32}}"
        rf"~ /usr/bin/webserver: size 16064 {arrow} 16068, content [0-9a-f]{{64}} {arrow} "
        "[0-9a-f]{64}",
        "".join(shown.lines),
    )
    assert ("\x1b" in shown.text) == (environment.get("TERM") != "dumb")
