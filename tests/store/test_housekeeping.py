"""The content of the cache, its verification, and that used files are kept."""

from __future__ import annotations

import gzip
import hashlib
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from fledge.cli.units import parse_duration, parse_size
from fledge.errors import ConfigError, CorruptError
from fledge.report import Reporter
from fledge.session import Session
from fledge.store.cache import Cache
from fledge.store.housekeeping import Amount, contents, prune, verify
from fledge.tree.content import Blob
from fledge.tree.digest import Digest
from tests.support import project
from tests.support.httpd import Exchange, Server
from tests.support.project import Fledge
from tests.support.tars import file, pack

DAY = 86400


@pytest.fixture
def cache() -> Cache:
    """A cache that uses no files. Writers use their own instance, like another process."""
    return Session.default().cache


def store(data: bytes, days_ago: float = 0) -> Blob:
    blob = Session.default().cache.store(data)
    used = time.time() - days_ago * DAY
    os.utime(blob.path, (used, used))
    return blob


def left(cache: Cache) -> set[Path]:
    return {stored.path for stored in cache.entries()}


def damage(blob: Blob) -> None:
    blob.path.chmod(0o644)
    blob.path.write_bytes(b"X" * blob.size)


def unfinished(cache: Cache, name: str = "0" * 64, days_ago: float = 0) -> Path:
    path = project.write(cache.root, f"partial/{name}", b"half")
    used = time.time() - days_ago * DAY
    os.utime(path, (used, used))
    return path


def test_contents_by_kind(cache: Cache) -> None:
    tar = pack(file("a", b"x"))
    for data in (tar, gzip.compress(tar), b'{"a": 1}', b"\x7fELF", b"#!/bin/sh", b"text"):
        store(data)
    unfinished(cache)
    project.write(cache.root, "blobs/sha256/README", b"not of fledge")
    assert contents(cache) == {
        "compressed layers": Amount(1, len(gzip.compress(tar))),
        "layers": Amount(1, len(tar)),
        "manifests and configs": Amount(1, 8),
        "others": Amount(1, 4),
        "programs": Amount(2, 13),
        "unfinished downloads": Amount(1, 4),
    }


def test_show(fledge: Fledge, cache: Cache) -> None:
    store(b"#!/bin/sh")
    done = fledge("cache")
    assert done.code == 0
    assert done.out.splitlines() == [
        str(cache.root),
        "  programs              1 file, 9 bytes",
        "  all together          1 file, 9 bytes",
    ]


def test_no_cache_yet(fledge: Fledge, cache: Cache) -> None:
    for command in (["cache"], ["cache", "verify"], ["cache", "prune", "--max-size", "0B"]):
        done = fledge(*command)
        assert (done.code, done.err) == (0, "")
        assert "0 files, 0 bytes" in done.out


def test_sound(cache: Cache) -> None:
    store(b"one")
    store(b"other")
    unfinished(cache)
    assert verify(cache, Reporter()) == Amount(2, 8)


def test_what_is_damaged_is_named_and_goes(fledge: Fledge, cache: Cache) -> None:
    good, bad = store(b"good"), store(b"bad")
    damage(bad)
    done = fledge("cache", "verify")
    assert done.code == 4
    assert "damaged files in the cache, 1 of 2:" in done.err
    assert f"{bad.path} has sha256 {hashlib.sha256(b'XXX').hexdigest()}; removed" in done.err
    assert left(cache) == {good.path}
    assert fledge("cache", "verify").code == 0


def test_what_is_damaged_and_in_use_stays(cache: Cache) -> None:
    user = Session.default().cache
    bad = user.store(b"bad")
    damage(bad)
    with pytest.raises(CorruptError, match="in use, so it stays"):
        verify(cache, Reporter())
    assert left(cache) == {bad.path}


def test_what_was_replaced_meanwhile_stays(cache: Cache) -> None:
    damage(store(b"bad"))
    [before] = cache.entries()
    good = store(b"bad")
    assert not cache.remove(before)
    assert good.path.read_bytes() == b"bad"


def test_prune_by_age(cache: Cache) -> None:
    old, new = store(b"old", days_ago=31), store(b"new", days_ago=29)
    abandoned, recent = (unfinished(cache, str(days) * 32, days) for days in (40, 20))
    pruned = prune(cache, 30 * DAY, None)
    assert left(cache) == {new.path, recent}
    assert not old.path.exists()
    assert not abandoned.exists()
    assert (pruned.removed, pruned.in_use, pruned.left) == (Amount(2, 7), Amount(), Amount(2, 7))


def test_prune_by_size_keeps_what_was_used_last(cache: Cache) -> None:
    blobs = [store(bytes([days]) * 100, days_ago=days) for days in range(5)]
    Session.default().cache.find(blobs[4].digest)
    pruned = prune(cache, None, 250)
    assert left(cache) == {blobs[0].path, blobs[4].path}
    assert pruned.left == Amount(2, 200)


def test_what_is_in_use_stays(cache: Cache) -> None:
    user = Session.default().cache
    added, found = user.store(b"added"), store(b"found")
    user.find(found.digest)
    with user.partial(Digest("1" * 64), lambda: None) as partial:
        partial.write(b"half")
        pruned = prune(cache, None, 0)
        assert left(cache) == {added.path, found.path, partial.path}
    assert pruned.in_use == pruned.left == Amount(3, 14)
    del user
    prune(cache, None, 0)
    assert left(cache) == set()


def test_what_is_used_between_look_and_removal_stays(cache: Cache) -> None:
    blob = store(b"x", days_ago=50)
    [before] = cache.entries()
    Session.default().cache.find(blob.digest)
    assert not cache.remove(before)


@pytest.mark.slow
def test_killed_build_keeps_nothing(cache: Cache) -> None:
    blob = store(b"used")
    code = (
        "import sys, time\nfrom fledge.session import Session\n"
        "from fledge.tree.digest import Digest\ncache = Session.default().cache\n"
        f"cache.find(Digest('{blob.digest.hex}'))\nprint(flush=True)\ntime.sleep(100)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as user:
        assert user.stdout
        user.stdout.readline()
        prune(cache, None, 0)
        assert left(cache) == {blob.path}
        user.kill()
    prune(cache, None, 0)
    assert left(cache) == set()


@pytest.mark.slow
def test_prune_beside_a_running_build(fledge: Fledge, cache: Cache, tmp_path: Path) -> None:
    asked, answer = threading.Event(), threading.Event()

    def slow(exchange: Exchange) -> None:
        asked.set()
        answer.wait(30)
        exchange.reply(200, project.FILES["kestrel"])

    binary = project.busybox()
    unused = store(b"unused")
    with Server() as server:
        server.answers["/kestrel"] = slow
        agent = f'[agent]\nsource_strategy = "http"\nurl = "{server.url("/kestrel")}"\n'
        project.make(tmp_path, agent)
        build = subprocess.Popen([sys.executable, "-m", "fledge", "build", "-q"], cwd=tmp_path)
        assert asked.wait(30)
        done = fledge("cache", "prune", "--older-than", "0s", "--max-size", "0B")
        assert done.code == 0
        assert "removed: 1 file, 6 bytes\nin use: " in done.out
        assert not unused.path.exists()
        assert cache.path(Digest.of(binary)).exists()
        answer.set()
        assert build.wait(30) == 0
    assert (tmp_path / "plugin.cpio.gz").exists()


@pytest.mark.parametrize(
    ("text", "size"),
    [
        *(("0B", 0), ("7KiB", 7 << 10), ("5GiB", 5 << 30), ("1TiB", 1 << 40)),
        *(("5GB", 5 * 10**9), ("5gb", 5 * 10**9), ("5G", 5 << 30), ("500 MB", 500 * 10**6)),
        *(("7kB", 7000), ("7k", 7 << 10), ("1.5GiB", 3 << 29), ("5gib", 5 << 30)),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("5m", 300), ("30d", 30 * DAY)])
def test_durations(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "5", "GiB", "-1B", "1,5GiB", "5EB", "5 G B", "٣B", "9" * 99])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a size") as caught:
        parse_size(text)
    assert "such as 30GiB" in caught.value.hint


def test_prune_wants_to_know_what(fledge: Fledge) -> None:
    assert fledge("cache", "prune").code == 2
    done = fledge("cache", "prune", "--older-than", "1y")
    assert done.code == 2
    assert "'1y' is not a duration" in done.err


def test_prune_removes_what_killed_builds_have_left(fledge: Fledge, tmp_path: Path) -> None:
    (tmp_path / ".fledge-dead" / "tree").mkdir(parents=True)
    done = fledge("cache", "prune", "--max-size", "1GiB")
    assert done.code == 0
    assert "of killed builds: 1 folder removed" in done.out
    assert os.listdir(tmp_path) == []
