"""The command line as a whole: output, messages, exit codes, and files that it leaves."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fledge import __version__
from fledge.cli import failures
from fledge.cli.failures import explained
from tests.support import project
from tests.support.httpd import Exchange, Server, content, in_turn, status
from tests.support.project import Fledge
from tests.support.pythons import nobody

FLEDGE = [sys.executable, "-m", "fledge"]


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        yield running


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob(".fledge-*")]


def test_build(fledge: Fledge, tmp_path: Path) -> None:
    project.make(tmp_path)
    done = fledge("build")
    assert (done.code, done.out) == (0, "plugin.cpio.gz\n")
    artifact = (tmp_path / "plugin.cpio.gz").read_bytes()
    for step in ("busybox", "agent", "init", "mappings", "write"):
        assert re.search(rf"✓ {step} .* \d+\.\d\d s\n", done.err)
    assert f"sha256 {hashlib.sha256(artifact).hexdigest()}" in done.err
    assert leftovers(tmp_path) == []


def test_json(fledge: Fledge, tmp_path: Path) -> None:
    project.make(tmp_path)
    done = fledge("build", "--json", "-o", tmp_path / "x.gz")
    answer = json.loads(done.out)
    artifact = (tmp_path / "x.gz").read_bytes()
    assert answer["path"] == str(tmp_path / "x.gz")
    assert answer["size"] == len(artifact)
    assert answer["sha256"] == hashlib.sha256(artifact).hexdigest()
    assert {item["role"] for item in answer["inputs"]} == {
        *("busybox", "agent", "mapping", "mappings"),
    }
    kestrel = hashlib.sha256(project.FILES["kestrel"]).hexdigest()
    assert {"role": "agent", "uri": "kestrel", "sha256": kestrel} in answer["inputs"]


def test_quiet(fledge: Fledge, tmp_path: Path) -> None:
    project.make(tmp_path)
    assert (fledge("build", "-q").err, fledge("build", "-q").out) == ("", "plugin.cpio.gz\n")


def test_verbose_names_every_input(fledge: Fledge, tmp_path: Path) -> None:
    project.make(tmp_path)
    err = fledge("build", "-v").err
    for name, data in project.FILES.items():
        assert re.search(rf"{hashlib.sha256(data).hexdigest()}  {name}\n", err)


def test_verbose_tells_where_an_input_came_from(
    fledge: Fledge, server: Server, tmp_path: Path
) -> None:
    binary = project.busybox()
    server.answers["/busybox"] = content(binary)
    url = server.url("/busybox")
    project.make(tmp_path, project.LOCAL_AGENT, project.source(url, binary))
    size = f"{len(binary)} bytes"
    assert f"    busybox: {size} from {url}\n" in fledge("build", "-v").err
    assert f"    busybox: {size} from the cache\n" in fledge("build", "-v").err
    assert "from the cache" not in fledge("build").err


@pytest.mark.slow
def test_verbose_tells_of_an_image(fledge: Fledge, tmp_path: Path) -> None:
    project.make_rootfs(tmp_path)
    first = fledge("build", "-v").err
    assert re.search(r"    layer [0-9a-f]{12}: \d+\.\d KiB, unpacked\n", first)
    manifest = re.search(r"    manifest (sha256:[0-9a-f]{64})\n", first)
    assert manifest
    assert manifest[1].partition(":")[2] in {path.name for path in tmp_path.rglob("*")}
    again = fledge("build", "-v").err
    assert re.search(r"    layer [0-9a-f]{12}: \d+\.\d KiB, from the cache\n", again)


def test_check(fledge: Fledge, tmp_path: Path) -> None:
    toml = project.make(tmp_path)
    assert fledge("check", "-c", toml).code == 0
    toml.write_text(toml.read_text().replace("initramfs", "initrd"))
    done = fledge("check", "-c", toml)
    assert done.code == 2
    assert f'{toml}:2: strategy = "initrd": did you mean "initramfs"?' in done.err


def test_version(fledge: Fledge) -> None:
    assert fledge("version").out == f"fledge {__version__}\n"


def test_second_build_replaces_the_first(fledge: Fledge, tmp_path: Path) -> None:
    toml = project.make(tmp_path)
    fledge("build")
    first = (tmp_path / "plugin.cpio.gz").read_bytes()
    fledge("build")
    assert (tmp_path / "plugin.cpio.gz").read_bytes() == first
    project.write(tmp_path, "payload/webserver.yaml", b"port: 8080\n")
    assert fledge("build", "-c", toml).code == 0
    assert (tmp_path / "plugin.cpio.gz").read_bytes() != first


def test_offline(fledge: Fledge, server: Server, tmp_path: Path) -> None:
    binary = project.busybox()
    server.answers["/busybox"] = content(binary)
    url = server.url("/busybox")
    project.make(tmp_path, project.LOCAL_AGENT, project.source(url, binary))
    done = fledge("build", "--offline")
    assert done.code == 3
    for part in ("busybox", url, hashlib.sha256(binary).hexdigest(), "--offline"):
        assert part in done.err
    assert fledge("build").code == 0
    assert fledge("build", "--offline").code == 0
    assert len(server.seen) == 1


BUSYBOX = project.busybox() + bytes(200_000)
"""Large enough to arrive in several pieces."""


def busybox_from(url: str, binary: bytes = BUSYBOX) -> tuple[str, str]:
    return project.LOCAL_AGENT, project.source(url, binary)


def test_wrong_checksum(fledge: Fledge, server: Server, tmp_path: Path) -> None:
    server.answers["/busybox"] = content(b"other")
    project.make(tmp_path, *busybox_from(server.url("/busybox")))
    done = fledge("build")
    assert done.code == 4
    assert hashlib.sha256(b"other").hexdigest() in done.err
    assert hashlib.sha256(BUSYBOX).hexdigest() in done.err
    assert server.url("/busybox") in done.err


def test_server_that_stops_midway_is_resumed(
    fledge: Fledge, server: Server, tmp_path: Path
) -> None:
    server.answers["/busybox"] = in_turn(content(BUSYBOX, cut=100_000), content(BUSYBOX))
    project.make(tmp_path, *busybox_from(server.url("/busybox")))
    done = fledge("build")
    assert done.code == 0
    assert server.seen[1].headers["Range"] == "bytes=100000-"
    assert "trying again" in done.err


def test_truncated_download(fledge: Fledge, server: Server, tmp_path: Path) -> None:
    server.answers["/busybox"] = content(BUSYBOX, headers={"Accept-Ranges": "none"}, cut=1000)
    project.make(tmp_path, *busybox_from(server.url("/busybox")))
    done = fledge("build")
    assert done.code == 3
    assert re.search(r"stopped after .* of", done.err)


@pytest.mark.parametrize(
    ("code", "words"), [(404, "Check the URL"), (403, "login"), (500, "later")]
)
def test_refused_download(
    fledge: Fledge, server: Server, tmp_path: Path, code: int, words: str
) -> None:
    server.answers["/busybox"] = status(code)
    project.make(tmp_path, *busybox_from(server.url("/busybox")))
    done = fledge("build")
    assert done.code == 3
    assert f"{server.url('/busybox')}: the server answers {code}" in done.err
    assert words in done.err


def test_rate_limit(
    fledge: Fledge, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLEDGE_GITHUB_API", server.url(""))
    limit = {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "86400"}
    server.answers["/repos/volantvm/volant/releases/latest"] = status(403, headers=limit)
    project.make(tmp_path, "\n")
    done = fledge("build")
    assert done.code == 3
    assert "until 1970-01-02 00:00 UTC" in done.err
    assert "Set GITHUB_TOKEN" in done.err


def test_no_agent_for_the_architecture(
    fledge: Fledge, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLEDGE_GITHUB_API", server.url(""))
    asset = {"name": "kestrel", "browser_download_url": server.url("/kestrel")}
    release = json.dumps({"tag_name": "v1", "assets": [asset]}).encode()
    server.answers["/repos/volantvm/volant/releases/latest"] = status(200, release)
    project.make(tmp_path, "\n", busybox_binary=project.busybox(machine=183))
    done = fledge("build")
    assert done.code == 3
    assert "no asset for arm64" in done.err


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://127.0.0.1:{port}/busybox", "refuses the connection"),
        ("http://fledge-test.invalid/busybox", "cannot be found"),
    ],
)
def test_no_network(fledge: Fledge, tmp_path: Path, url: str, words: str) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        project.make(tmp_path, *busybox_from(url.format(port=unused.getsockname()[1])))
        done = fledge("build")
    assert done.code == 3
    assert words in done.err


@pytest.mark.parametrize(
    ("binary", "words"),
    [
        (b"#!/bin/sh\n", "not an ELF program"),
        (project.program(body=b"\0BusyBox v1\0"), "no applets"),
        (project.program(body=b"ash\0cat\0sh\0"), "no applets"),
    ],
)
def test_busybox_that_is_none(fledge: Fledge, tmp_path: Path, binary: bytes, words: str) -> None:
    project.make(tmp_path, project.LOCAL_AGENT, busybox_binary=binary)
    done = fledge("build")
    assert done.code == 4
    assert words in done.err
    assert "busybox_url" in done.err


@pytest.mark.parametrize(
    ("output", "code", "words"),
    [
        ("payload", 2, "is a folder"),
        ("missing/x.gz", 2, "missing is not a folder"),
        ("fledge.toml", 2, "is an input"),
        ("payload/site/x.gz", 2, "the next build would include it"),
        ("/", 2, "/ is a folder"),
        (".", 2, "is a folder"),
        ("..", 2, "is a folder"),
    ],
)
def test_bad_output(fledge: Fledge, tmp_path: Path, output: str, code: int, words: str) -> None:
    project.make(tmp_path)
    done = fledge("build", "-o", output)
    assert done.code == code
    assert words in done.err
    assert "with -o" in done.err


@pytest.mark.parametrize(
    ("toml", "code"), [(None, 2), ("version = ", 2), ('version = "2"', 2), ("\x00", 2)]
)
def test_bad_config(fledge: Fledge, tmp_path: Path, toml: str | None, code: int) -> None:
    if toml is not None:
        (tmp_path / "fledge.toml").write_text(toml)
    for command in ("build", "check"):
        done = fledge(command)
        assert done.code == code
        assert "fledge.toml" in done.err
        assert "Traceback" not in done.err


@pytest.mark.parametrize("arguments", [["bild"], ["build", "--no"], ["build", "-c"]])
def test_bad_usage(fledge: Fledge, arguments: list[str]) -> None:
    assert fledge(*arguments).code == 2


def test_quiet_and_verbose_exclude_each_other(fledge: Fledge, tmp_path: Path) -> None:
    project.make(tmp_path)
    assert fledge("build", "-q", "-v").code == 2


def test_no_traceback_for_mistakes_of_the_user(fledge: Fledge, tmp_path: Path) -> None:
    (tmp_path / "fledge.toml").write_text("version = 1")
    for command in (("build", "-v"), ("check", "-v"), ("inspect", "-v", tmp_path / "absent")):
        done = fledge(*command)
        assert done.code != 0
        assert "Traceback" not in done.err


def test_failure_of_fledge_itself(
    fledge: Fledge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        try:
            raise ValueError("the cause \x1b]0;title\x07")
        except ValueError as error:
            raise ZeroDivisionError("oops\nerror: FAKE") from error

    monkeypatch.setattr("fledge.project.config.load", broken)
    done = fledge("check")
    assert done.code == 1
    assert "ZeroDivisionError: oops" in done.err
    assert "Traceback" not in done.err
    verbose = fledge("check", "-v").err
    for words in ("Traceback", "ValueError: the cause", "The above exception was the direct cause"):
        assert words in verbose
    for shown in (done.err, verbose):
        assert "\x1b" not in shown
        assert "\nerror: FAKE" not in shown


def test_failed_build_leaves_the_old_artifact(fledge: Fledge, tmp_path: Path) -> None:
    project.make(tmp_path, project.LOCAL_AGENT, busybox_binary=b"none")
    (tmp_path / "plugin.cpio.gz").write_bytes(b"old")
    assert fledge("build").code == 4
    assert (tmp_path / "plugin.cpio.gz").read_bytes() == b"old"
    assert leftovers(tmp_path) == []


@pytest.mark.real
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small tmpfs")
def test_full_disk(fledge: Fledge, tmp_path: Path) -> None:
    project.make(tmp_path, files=project.FILES | {"payload/site/noise": os.urandom(1 << 20)})
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", small], check=True)
    try:
        done = fledge("build", "-o", small / "x.gz")
        assert done.code == 1
        assert f"{small}/x.gz could not be written: no space left on device" in done.err
        assert f"Free some space in {small}" in done.err
        assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", small], check=True)


@pytest.mark.real
def test_unwritable_output_folder() -> None:
    with nobody() as user:
        project.make(user.home)
        command: list[str | Path] = [user.python, "-m", "fledge", "build", "-o", "/usr/x.gz"]
        done = user.run(command)
        assert done.returncode == 5
        assert "you may not write to /usr" in done.stderr
        assert "with -o" in done.stderr


def stalls(release: threading.Event) -> Callable[[Exchange], None]:
    """Serve the beginning of a busybox, and then nothing until the test ends."""

    def answer(exchange: Exchange) -> None:
        exchange.send_response(200)
        exchange.send_header("Content-Length", str(len(BUSYBOX)))
        exchange.end_headers()
        exchange.wfile.write(BUSYBOX[:100_000])
        exchange.wfile.flush()
        release.wait(60)

    return answer


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted(server: Server, tmp_path: Path, number: signal.Signals) -> None:
    release = threading.Event()
    server.answers["/busybox"] = stalls(release)
    project.make(tmp_path, *busybox_from(server.url("/busybox")))
    (tmp_path / "plugin.cpio.gz").write_bytes(b"old")
    before = sorted(tmp_path.iterdir())
    process = subprocess.Popen([*FLEDGE, "build"], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    try:
        while not server.seen:
            time.sleep(0.01)
        time.sleep(0.1)
        process.send_signal(number)
        _, err = process.communicate(timeout=30)
    finally:
        process.kill()
        release.set()
    assert process.returncode == -number
    assert "interrupted; nothing was written" in err
    assert "Traceback" not in err
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "plugin.cpio.gz").read_bytes() == b"old"


BETWEEN_RENAMES = """
import os, signal, sys
from fledge.cli.app import main
replace = os.replace
def interrupted(*names, **folders):
    replace(*names, **folders)
    os.kill(os.getpid(), signal.SIGTERM)
os.replace = interrupted
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "written"),
    [
        (("build", "-o", "x.gz"), "x.gz is"),
        (("lock",), "fledge.lock is"),
    ],
)
def test_an_interrupt_after_the_renames_is_told_truly(
    command: tuple[str, ...], written: str, tmp_path: Path
) -> None:
    project.make(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", BETWEEN_RENAMES, *command],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGTERM
    assert f"error: interrupted; {written} written\n" in done.stderr
    assert (tmp_path / written.partition(" ")[0]).exists()


@pytest.mark.slow
def test_nohup_is_respected(tmp_path: Path) -> None:
    project.make(tmp_path)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    process = subprocess.Popen([*FLEDGE, "build", "-q"], cwd=tmp_path, stdout=subprocess.PIPE)
    signal.signal(signal.SIGHUP, before)
    while process.poll() is None:
        process.send_signal(signal.SIGHUP)
        time.sleep(0.01)
    assert process.returncode == 0


@pytest.mark.slow
def test_interrupted_while_writing(tmp_path: Path) -> None:
    files = {"payload/noise": os.urandom(1 << 20) * 64, "kestrel": b"#!/bin/sh\n"}
    mapping = '[mappings]\n"payload" = "/srv"\n'
    project.make(tmp_path, project.LOCAL_AGENT, mapping, files=files)
    process = subprocess.Popen([*FLEDGE, "build"], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    while not leftovers(tmp_path) and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGINT
    assert "interrupted" in err
    assert leftovers(tmp_path) == []
    assert not (tmp_path / "plugin.cpio.gz").exists()


def test_interrupted_while_a_block_is_entered(monkeypatch: pytest.MonkeyPatch) -> None:
    events = []
    monkeypatch.setattr(failures, "die_of", lambda number: events.append("died"))

    @contextmanager
    def block() -> Iterator[None]:
        try:
            yield
        finally:
            events.append("left")

    def enter() -> None:
        manager = block()
        manager.__enter__()
        raise KeyboardInterrupt

    with explained(verbose=False):
        enter()
    assert events == ["left", "died"]


def on_a_terminal(command: list[str], folder: Path, environment: dict[str, str]) -> str:
    """Return what the command prints on a terminal."""
    parent, child = pty.openpty()
    process = subprocess.Popen(
        command, cwd=folder, stderr=child, stdout=subprocess.DEVNULL, env=os.environ | environment
    )
    os.close(child)
    shown = b""
    while select.select([parent], [], [], 30)[0]:
        try:
            shown += os.read(parent, 65536)
        except OSError:
            break
    assert process.wait() == 0
    os.close(parent)
    return shown.decode()


@pytest.mark.slow
def test_progress_on_a_terminal(server: Server, tmp_path: Path) -> None:
    def slowly(exchange: Exchange) -> None:
        exchange.send_response(200)
        exchange.send_header("Content-Length", str(len(BUSYBOX)))
        exchange.end_headers()
        for start in range(0, len(BUSYBOX), 40_000):
            exchange.wfile.write(BUSYBOX[start : start + 40_000])
            exchange.wfile.flush()
            time.sleep(0.1)

    server.answers["/busybox"] = slowly
    project.make(tmp_path, *busybox_from(server.url("/busybox")))
    shown = on_a_terminal([*FLEDGE, "build"], tmp_path, {"TERM": "xterm", "COLUMNS": "120"})
    assert re.search(r"busybox.*━.*/\d.* [KM]iB", shown), shown
    assert re.search(r"[KM]iB/s", shown)
    assert re.search(r"\d:\d\d:\d\d", shown)


@pytest.mark.slow
def test_standard_error_may_be_closed(tmp_path: Path) -> None:
    project.make(tmp_path)
    closed = ["sh", "-c", 'exec "$@" 2>&-', "sh", *FLEDGE, "build"]
    done = subprocess.run(closed, cwd=tmp_path, stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout == "plugin.cpio.gz\n"


@pytest.mark.slow
def test_no_colour_in_a_log(tmp_path: Path) -> None:
    project.make(tmp_path)
    done = subprocess.run(
        [*FLEDGE, "build"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "\x1b" not in done.stderr


def test_hostile_names_do_not_reach_the_terminal(fledge: Fledge, tmp_path: Path) -> None:
    toml = project.make(tmp_path)
    (tmp_path / "fledge.toml").write_text(
        toml.read_text() + '"a\\u001b[31mb" = "/x"\n"c[bold]d" = "/y"\n'
    )
    done = fledge("build")
    assert done.code == 2
    assert "\x1b[31m" not in done.err
    assert "c[bold]d" in done.err


@pytest.mark.parametrize("line", ["\nerror: FAKE", "\n  error: FAKE", "\r\n    FAKE"])
@pytest.mark.slow
def test_a_newline_in_a_name_makes_no_line(fledge: Fledge, tmp_path: Path, line: str) -> None:
    mapping = json.dumps({f"payload/site{line}": f"/var/www{line}"})[1:-1].replace('": ', '" = ')
    project.make(tmp_path, project.LOCAL_AGENT, f"[mappings]\n{mapping}\n")
    (tmp_path / "payload/site").rename(tmp_path / f"payload/site{line}")
    assert fledge("build").code == 0
    record = tmp_path / "plugin.cpio.gz.provenance.json"
    statement = json.loads(record.read_text())
    statement["predicate"]["buildDefinition"]["externalParameters"]["config"][f"a{line}"] = line
    record.write_text(json.dumps(statement))
    (tmp_path / "wrong.toml").write_text(f"{json.dumps('a' + line)} = 1\n")
    name = f"x{line}"
    (tmp_path / name).write_bytes(b"neither")
    for command in (
        ("check", "-c", name),
        ("inspect", name),
        ("verify", name),
        ("diff", name, "other"),
        ("build", "-c", f"missing{line}"),
        ("build", "-v", "-o", f"no{line}/where"),
        ("verify", "plugin.cpio.gz"),
        ("check", "-c", "wrong.toml"),
        ("inspect", "plugin.cpio.gz", f"none{line}"),
    ):
        done = fledge(*command)
        assert done.code in (1, 2, 4)
        assert "FAKE" in done.err
        assert line not in done.out + done.err
    for command in (("build", "-v"), ("inspect", "--list", "plugin.cpio.gz")):
        done = fledge(*command)
        assert done.code == 0
        assert line not in done.out + done.err


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A log tells of the running step every 20 ms."""
    monkeypatch.setattr("fledge.cli.lines.LINE_INTERVAL", 0.02)


@pytest.mark.slow
@pytest.mark.usefixtures("often")
def test_a_log_tells_of_a_long_download(fledge: Fledge, server: Server, tmp_path: Path) -> None:
    pause = threading.Event()

    def slowly(exchange: Exchange) -> None:
        pause.wait(0.1)
        exchange.send_response(200)
        exchange.send_header("Content-Length", str(len(BUSYBOX)))
        exchange.end_headers()
        exchange.wfile.write(BUSYBOX[:102_400])
        pause.wait(0.2)
        exchange.wfile.write(BUSYBOX[102_400:])

    server.answers["/busybox"] = slowly
    project.make(tmp_path, *busybox_from(server.url("/busybox")))
    err = fledge("build").err
    assert err.startswith("  … busybox\n    busybox: 0 s\n")
    assert re.search(r"\n    busybox: 100\.0/195\.\d KiB, 0:00:00 left\n", err)
    assert "\n  … agent\n  ✓ agent " in err, err


@pytest.mark.real
@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("options", ['builder = "native"', 'builder = "mkfs"'])
def test_a_log_tells_of_long_work(fledge: Fledge, tmp_path: Path, options: str) -> None:
    toml = project.make_rootfs(tmp_path)
    toml.write_text(toml.read_text().replace("size_buffer_mb = 8", options))
    with (tmp_path / "payload/site/large").open("wb") as file:
        for _ in range(256):
            file.write(os.urandom(1 << 20))
    written = fledge("build", "-o", "one.img").err.split("… write\n")[1]
    assert re.search(r"\n    write: \d+\.\d/\d+\.\d MiB, 0:00:\d\d left\n", "\n" + written)
    if "mkfs" in options:
        assert re.search(r"    write: \d+ s\n", written)
        # The files are staged, and the image is hashed.
        totals = set(re.findall(r"    write: \d+\.\d/(\d+\.\d) MiB", written))
        assert len(totals) == 2, written
    (tmp_path / "two.img").write_bytes((tmp_path / "one.img").read_bytes())
    compared = fledge("diff", "one.img", "two.img")
    assert compared.code == 0
    assert re.search(r"    comparing: \d+\.\d/\d+\.\d MiB, 0:00:\d\d left\n", compared.err)
    told = fledge("inspect", "one.img")
    assert told.code == 0
    assert re.search(r"    reading one\.img: \d+\.\d/\d+\.\d MiB, 0:00:\d\d left\n", told.err)
    verified = fledge("verify", "one.img")
    assert verified.code == 0
    assert re.search(r"    read: \d+\.\d/\d+\.\d MiB, 0:00:\d\d left\n", verified.err)


@pytest.mark.parametrize(
    "command",
    [
        ("-v", "cache", "verify"),
        ("cache", "-v", "verify"),
        ("cache", "verify", "-v"),
        ("-v", "cache", "prune", "--max-size", "1GiB"),
        ("-v", "cache"),
        ("cache", "-v"),
    ],
)
def test_verbose_wherever_it_is_written(fledge: Fledge, command: tuple[str, ...]) -> None:
    assert fledge(*command).code == 0


@pytest.mark.slow
@pytest.mark.usefixtures("often")
def test_a_log_tells_how_long_an_archive_is_read(fledge: Fledge, tmp_path: Path) -> None:
    project.make(tmp_path)
    with (tmp_path / "payload/site/large").open("wb") as file:
        for _ in range(64):
            file.write(os.urandom(1 << 20))
    assert fledge("build").code == 0
    Path("plugin.cpio.gz.provenance.json").unlink()
    done = fledge("inspect", "plugin.cpio.gz")
    assert "    reading plugin.cpio.gz: 0 s\n" in done.err
    assert done.out == fledge("inspect", "plugin.cpio.gz").out
