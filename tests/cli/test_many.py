"""Commands for several projects at once."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.support import images, project, registry, screen, tars
from tests.support.project import Fledge

pytestmark = pytest.mark.slow

FLEDGE = [sys.executable, "-m", "fledge"]


def make_all(folder: Path, *names: str) -> None:
    for name in names:
        project.make(folder / "plugins" / name)


def artifacts(*names: str) -> str:
    return "".join(f"plugins/{name}/plugin.cpio.gz\n" for name in names)


@pytest.mark.parametrize(
    "arguments",
    [
        ("plugins/a", "plugins/b", "plugins/c"),
        ("plugins/a/fledge.toml", "plugins/b/", "plugins/c"),
        ("plugins/*",),
        ("**/fledge.toml",),
        ("plugins/a", "plugins/?", "-c", "plugins/a/fledge.toml"),
        tuple(f"-cplugins/{name}/fledge.toml" for name in "abc"),
    ],
)
def test_ways_to_name_several(fledge: Fledge, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    make_all(tmp_path, "a", "b", "c")
    (tmp_path / "plugins" / "README.md").write_text("no project")
    (tmp_path / "plugins" / "empty").mkdir()
    done = fledge("build", *arguments)
    assert (done.code, done.out) == (0, artifacts("a", "b", "c")), done.err
    assert "  3 built, in " in done.err
    done = fledge("build", "--changed", *arguments)
    assert (done.code, done.out) == (0, artifacts("a", "b", "c"))
    assert "  3 up to date, in " in done.err


def test_one_that_is_named_as_several(fledge: Fledge, tmp_path: Path) -> None:
    make_all(tmp_path, "a")
    assert fledge("build", "plugins/*").out == artifacts("a")
    assert len(json.loads(fledge("build", "plugins/*", "--json").out)) == 1
    done = fledge("build", "-c", "plugins/a/fledge.toml")
    assert done.out == "plugin.cpio.gz\n"
    done = fledge("build", "-c", "plugins/a/fledge.toml", "--changed", "--json")
    answer = json.loads(done.out)
    assert (answer["path"], answer["status"]) == ("plugin.cpio.gz", "up to date")
    done = fledge("build", "-c", "plugins/a/fledge.toml", "--changed", "-o", "x.gz")
    assert done.out == "x.gz\n"
    assert (tmp_path / "x.gz").exists()


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (("none",), "none is neither a folder nor a .toml file"),
        (("plugins",), "plugins/fledge.toml: no such file"),
        (("none/*",), "no folder with a fledge.toml matches none/*"),
        (("plugins/a/kestrel",), "plugins/a/kestrel is neither a folder nor a .toml file"),
        (("plugins/*", "-m", "x.toml"), "--manifest has the settings of one plugin"),
    ],
)
def test_what_names_no_project(
    fledge: Fledge, tmp_path: Path, arguments: tuple[str, ...], answer: str
) -> None:
    make_all(tmp_path, "a", "b")
    done = fledge("build", *arguments)
    assert (done.code, done.out) == (2, "")
    assert answer in done.err
    assert not list(tmp_path.glob("**/plugin.cpio.gz"))


def test_a_folder_of_something_else_leaves_the_others(fledge: Fledge, tmp_path: Path) -> None:
    """A shell expands plugins/* to all folders."""
    make_all(tmp_path, "a", "b")
    (tmp_path / "plugins/docs").mkdir()
    done = fledge("build", "plugins/a", "plugins/b", "plugins/docs")
    assert (done.code, done.out) == (2, artifacts("a", "b"))
    assert "error: plugins/docs: plugins/docs/fledge.toml: no such file" in done.err


def test_failures(fledge: Fledge, tmp_path: Path) -> None:
    make_all(tmp_path, "a", "b", "c", "d")
    (tmp_path / "plugins/b/kestrel").write_bytes(b"no program")
    (tmp_path / "plugins/c/fledge.toml").write_text('version = "1"\nstrategy = "x"\n')
    done = fledge("build", "plugins/*")
    assert (done.code, done.out) == (4, artifacts("a", "d"))
    assert "error: plugins/b: the agent from " in done.err
    assert "error: plugins/c: plugins/c/fledge.toml has a problem:\n" in done.err
    assert done.err.endswith("error: 2 of 4 failed: plugins/b, plugins/c\n")
    done = fledge("build", "plugins/c", "plugins/b", "plugins/a", "--json", "-q", "--changed")
    assert done.code == 2
    assert [(each["name"], each["status"]) for each in json.loads(done.out)] == [
        ("plugins/c", "failed"),
        ("plugins/b", "failed"),
        ("plugins/a", "up to date"),
    ]
    assert [each.get("exit_code") for each in json.loads(done.out)] == [2, 4, None]


def test_lines_have_the_name_of_the_plugin(fledge: Fledge, tmp_path: Path) -> None:
    make_all(tmp_path, "a", "b")
    err = fledge("build", "plugins/*").err
    lines = re.sub(r" [\d.]+ s", "", err).splitlines()
    # Both fetch the same busybox, so one may say that it waits.
    lines = [line for line in lines if "waiting for another build" not in line]
    for name in "ab":
        own = [line for line in lines if line.startswith(f"plugins/{name}:")]
        assert own[:2] == [
            f"plugins/{name}:  … busybox",
            f"plugins/{name}:  ✓ busybox   amd64, 6 applets ",
        ]
        assert any(
            re.fullmatch(rf"  ✓ plugins/{name} plugin\.cpio\.gz, 1\.\d KiB ", x) for x in lines
        )
    assert fledge("build", "plugins/*", "-q").err == ""


def test_lock_fetch_and_check(fledge: Fledge, tmp_path: Path) -> None:
    for name in "ab":
        project.make_rootfs(tmp_path / "plugins" / name)
    assert fledge("lock", "plugins/*", "--check").code == 1
    done = fledge("lock", "plugins/*")
    assert (done.code, done.out) == (0, "plugins/a/fledge.lock\nplugins/b/fledge.lock\n")
    assert fledge("lock", "plugins/*", "--check").code == 0
    done = fledge("fetch", "plugins/*")
    assert done.code == 0, done.err
    done = fledge("check", "plugins/*", "--kernel", "volant")
    assert done.code == 0, done.err
    assert done.out.count(" is valid\n") == 2
    assert done.out.count("this kernel boots the artifact\n") == 2
    (tmp_path / "plugins/a/kestrel").unlink()
    done = fledge("check", "plugins/a", "plugins/b")
    assert done.code == 2
    assert done.out == "plugins/b/fledge.toml is valid\n"
    assert "error: 1 of 2 failed: plugins/a\n" in done.err
    (tmp_path / "plugins/b/fledge.lock").unlink()
    done = fledge("fetch", "plugins/b", "plugins/a")
    assert done.code == 2
    assert "error: plugins/b: plugins/b/fledge.lock does not exist" in done.err


def make_from_registry(folder: Path, host: str, count: int, bases: int) -> list[images.Manifest]:
    """Write projects whose images are in a registry, and push those. Several share each image."""
    pushed = []
    for base in range(bases):
        common = tars.pack(tars.file("etc/common", b"common" * 9999))
        own = tars.pack(tars.file("base", os.urandom(300_000)))
        pushed.append(images.image(common, own))
        registry.push(host, f"base{base}", pushed[-1], "v1")
    project.make_many(folder, host, count, bases)
    return pushed


@pytest.mark.real
@pytest.mark.parametrize("locked", [False, True])
def test_a_registry_is_asked_once_for_each_blob(tmp_path: Path, locked: bool) -> None:
    (tmp_path / "storage").mkdir()
    with registry.serve(tmp_path / "storage") as behind, registry.forward(behind) as front:
        host = front.url("").removeprefix("http://")
        pushed = make_from_registry(tmp_path, behind, 20, 5)
        for toml in tmp_path.glob("plugins/*/fledge.toml"):
            toml.write_text(toml.read_text().replace(behind, host))
        if locked:
            subprocess.run([*FLEDGE, "lock", "plugins/*"], cwd=tmp_path, check=True)
        done = subprocess.run(
            [*FLEDGE, "build", "plugins/*", *(["--locked"] if locked else [])],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    assert len(done.stdout.splitlines()) == 20
    asked = Counter(request.path for request in front.seen)
    blobs = {path: count for path, count in asked.items() if "/blobs/" in path}
    digests = {f"sha256:{images.sha256(blob)}" for image in pushed for blob in image.blobs}
    assert {path.rpartition("/")[2] for path in blobs} == digests
    assert set(blobs.values()) == {1}
    manifests = {path: count for path, count in asked.items() if "/manifests/" in path}
    assert manifests == {f"/v2/base{base}/manifests/v1": 1 for base in range(5)}


def processes_in(folder: Path) -> list[str]:
    """Return the command lines of the processes whose working folder is this one."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(process / "cwd") == str(folder):
                found.append((process / "cmdline").read_text())
        except OSError:
            continue  # it has ended
    return found


def leftovers(folder: Path) -> list[str]:
    return [str(path) for path in folder.glob("plugins/*/.fledge-*")]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_ended_in_the_middle_and_run_again(tmp_path: Path, number: signal.Signals) -> None:
    names = [f"{count:02}" for count in range(12)]
    for name in names:
        project.make(tmp_path / "plugins" / name)
    with subprocess.Popen(
        [*FLEDGE, "build", "plugins/*"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr
        said = ""
        while said.count("  ✓ plugins/") < 4:
            said += process.stderr.readline()
        process.send_signal(number)
        out, rest = process.communicate()
    said += rest
    assert (process.returncode, out) == (-number, "")
    assert "Traceback" not in said
    while processes_in(tmp_path):
        time.sleep(0.01)  # the limit of the test ends an endless wait
    if number != signal.SIGKILL:
        assert re.search(r"error: interrupted; \d+ of 12 are done\n", said), said
        assert leftovers(tmp_path) == []
    complete = {
        path.parent.name
        for path in tmp_path.glob("plugins/*/plugin.cpio.gz")
        if path.with_name(f"{path.name}.provenance.json").exists()
    }
    assert 4 <= len(complete) < 12
    done = subprocess.run(
        [*FLEDGE, "build", "plugins/*", "--changed", "--json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    ends = {each["name"]: each["status"] for each in json.loads(done.stdout)}
    assert ends == {
        f"plugins/{name}": "up to date" if name in complete else "built" for name in names
    }
    assert leftovers(tmp_path) == []


def test_a_process_that_is_killed_leaves_the_others(tmp_path: Path) -> None:
    make_all(tmp_path, "a", "b", "c")
    code = """
import os, sys
from fledge.operations import builds
write = builds.write_artifact
def write_or_die(config, *arguments):
    if config.path.parent.name == "b":
        os.kill(os.getpid(), 9)
    return write(config, *arguments)
builds.write_artifact = write_or_die
from fledge.__main__ import main
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", code, "build", "plugins/*"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, artifacts("a", "c"))
    assert "error: plugins/b: its process died: signal 9 killed it\n" in done.stderr


def test_one_display_for_all(tmp_path: Path) -> None:
    for number in range(8):
        project.make_rootfs(tmp_path / "plugins" / str(number))
    shown = screen.run([*FLEDGE, "build", "plugins/*"], tmp_path)
    assert shown.code == 0, shown.text
    assert shown.cursor_visible
    running = re.compile(r"  [⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏] plugins/\d")
    most = max(sum(bool(running.match(line)) for line in moment) for moment in shown.moments)
    assert 1 <= most <= max(2, os.cpu_count() or 1)
    totals = [int(each) for each in re.findall(r"(\d)/8 plugins, \d+ s", shown.text)]
    assert totals == sorted(totals)
    assert [line for line in shown.lines if running.match(line)] == []
    ended = [line for line in shown.lines if re.match(r"  ✓ plugins/\d \S* *layout\.img, ", line)]
    assert len(ended) == 8, shown.lines
    assert shown.lines[-8:] == [f"plugins/{number}/layout.img" for number in range(8)]


def test_ctrl_c_in_the_display(tmp_path: Path) -> None:
    for number in range(12):
        project.make_rootfs(tmp_path / "plugins" / str(number))

    def middle(lines: list[str]) -> int | None:
        return signal.SIGINT if any("✓ plugins/" in line for line in lines) else None

    shown = screen.run([*FLEDGE, "build", "plugins/*"], tmp_path, interrupt=middle)
    assert shown.code == -signal.SIGINT or shown.code == 128 + signal.SIGINT
    assert shown.cursor_visible
    assert re.match(r"error: interrupted; \d+ of 12 are done", shown.lines[-1]), shown.lines
    assert processes_in(tmp_path) == []
    assert leftovers(tmp_path) == []
