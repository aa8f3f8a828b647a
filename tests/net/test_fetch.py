import email.utils
import gzip
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fledge.net.connection
import fledge.net.fetch
import fledge.net.transport
from fledge.errors import ConfigError, CorruptError, FledgeError, HostError, NetworkError
from fledge.host.settings import Settings
from fledge.net.exchange import HttpStatusError, printable_url
from fledge.net.fetch import Fetcher
from fledge.net.pace import Pace
from fledge.net.transport import Transport
from fledge.report import Reporter, Transfer
from fledge.session import Session
from fledge.store.cache import Cache
from fledge.tree.content import read_content
from fledge.tree.digest import Digest
from tests.support.files import irregular
from tests.support.httpd import Answer, Exchange, Server, content, in_turn, redirect, status

DATA = hashlib.shake_256().digest(1_000_000)
DIGEST = Digest.of(DATA)
TAG = {"ETag": '"1"'}
TOKEN = {"Authorization": "Bearer secret"}


class Recorder(Reporter):
    """Records reports; calls ``reached`` with the number of bytes so far."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.totals: list[tuple[int, int | None]] = []
        self.done = 0
        self.reached: Callable[[int], None] = lambda done: None

    @contextmanager
    def transfer(self, label: str) -> Iterator[Transfer]:
        reporter = self

        class Recording(Transfer):
            def advance(self, count: int) -> None:
                reporter.done += count
                reporter.reached(reporter.done)

            def restart(self, done: int, total: int | None) -> None:
                reporter.done = done
                reporter.totals.append((done, total))

        yield Recording()

    def note(self, message: str) -> None:
        self.notes.append(message)


@pytest.fixture(autouse=True)
def no_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    monkeypatch.delenv("CURL_CA_BUNDLE", raising=False)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture
def reporter() -> Recorder:
    return Recorder()


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture
def fetcher(cache: Cache, reporter: Recorder, tmp_path: Path) -> Fetcher:
    return Fetcher(cache, reporter, backoff=0, _transport=Transport(None, [tmp_path / "netrc"]))


def leave_partial(cache: Cache, left: bytes, digest: Digest = DIGEST) -> None:
    with cache.partial(digest, lambda: None) as partial:
        partial.write(left)


def stored(cache: Cache) -> list[str]:
    """Return the files in the cache, complete and incomplete."""
    return sorted(stored.path.name for stored in cache.entries())


def ranges(server: Server) -> list[str | None]:
    return [request.headers["Range"] for request in server.seen]


def unused_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_download(server: Server, fetcher: Fetcher, reporter: Recorder, cache: Cache) -> None:
    server.answers["/file"] = content(DATA)
    blob = fetcher.fetch(server.url("/file"), "file")
    assert (blob.digest, blob.size, blob.path.read_bytes()) == (DIGEST, len(DATA), DATA)
    assert stored(cache) == [DIGEST.hex]
    assert reporter.totals == [(0, len(DATA))]
    assert reporter.done == len(DATA)
    assert reporter.notes == []
    headers = server.seen[0].headers
    assert headers["Accept-Encoding"] == "identity"
    assert headers["User-Agent"].startswith("fledge/")
    assert headers["Authorization"] is None


def test_the_file_that_was_written_is_the_one_that_is_read(
    server: Server, fetcher: Fetcher, reporter: Recorder, cache: Cache
) -> None:
    """Others who may write to the cache put a fifo in its place, and nobody writes to that."""
    server.answers["/file"] = content(DATA)

    def swap(done: int) -> None:
        if done == len(DATA):
            path = cache.root / "partial" / DIGEST.hex
            path.unlink()
            os.mkfifo(path)

    reporter.reached = swap
    blob = fetcher.fetch(server.url("/file"), "file", DIGEST)
    assert b"".join(read_content(blob)) == DATA


def test_chunked(server: Server, fetcher: Fetcher, reporter: Recorder) -> None:
    server.answers["/file"] = chunked(DATA, end=b"0\r\n\r\n")
    assert fetcher.fetch(server.url("/file"), "file").digest == DIGEST
    assert reporter.totals == [(0, None)]


def chunked(body: bytes, end: bytes) -> Answer:
    def answer(exchange: Exchange) -> None:
        exchange.send_response(200)
        exchange.send_header("Transfer-Encoding", "chunked")
        exchange.end_headers()
        for start in range(0, len(body), 100_000):
            piece = body[start : start + 100_000]
            exchange.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        exchange.wfile.write(end)
        exchange.close_connection = True

    return answer


def test_chunked_without_its_end_is_truncated(server: Server, fetcher: Fetcher) -> None:
    server.answers["/file"] = chunked(DATA, end=b"")
    with pytest.raises(NetworkError, match="stopped after 1000000 bytes"):
        fetcher.fetch(server.url("/file"), "file")


def test_bytes_are_kept_as_they_were_sent(server: Server, fetcher: Fetcher) -> None:
    server.answers["/file"] = content(DATA, {"Content-Encoding": "gzip"})
    assert fetcher.fetch(server.url("/file"), "file", DIGEST).path.read_bytes() == DATA


def test_pinned_file_is_downloaded_once(server: Server, fetcher: Fetcher) -> None:
    server.answers["/file"] = content(DATA)
    first = fetcher.fetch(server.url("/file"), "file", DIGEST)
    assert fetcher.fetch(server.url("/file"), "file", DIGEST).path == first.path
    assert len(server.seen) == 1


def test_unpinned_file_is_looked_up_again(server: Server, fetcher: Fetcher) -> None:
    server.answers["/file"] = in_turn(content(b"old"), content(b"new"))
    assert fetcher.fetch(server.url("/file"), "file").path.read_bytes() == b"old"
    assert fetcher.fetch(server.url("/file"), "file").path.read_bytes() == b"new"


def test_damaged_blob_is_downloaded_again(server: Server, fetcher: Fetcher) -> None:
    server.answers["/file"] = content(DATA)
    path = fetcher.fetch(server.url("/file"), "file", DIGEST).path
    path.chmod(0o644)
    path.write_bytes(DATA[:-1] + b"x")
    assert fetcher.fetch(server.url("/file"), "file", DIGEST).path.read_bytes() == DATA
    assert len(server.seen) == 2


def test_wrong_checksum(server: Server, fetcher: Fetcher, cache: Cache) -> None:
    server.answers["/file"] = content(DATA)
    expected = Digest.of(b"other")
    with pytest.raises(CorruptError) as caught:
        fetcher.fetch(server.url("/file"), "busybox", expected)
    for part in ("busybox", server.url("/file"), DIGEST.hex, expected.hex):
        assert part in caught.value.message
    assert "publisher" in caught.value.hint
    assert stored(cache) == []
    assert len(server.seen) == 1


def test_memory_does_not_grow_with_the_file(server: Server, fetcher: Fetcher) -> None:
    size = 48 << 20

    def answer(exchange: Exchange) -> None:
        exchange.reply(200, headers={"Content-Length": str(size)})
        for _ in range(size >> 16):
            exchange.wfile.write(bytes(1 << 16))

    server.answers["/file"] = answer
    tracemalloc.start()
    try:
        assert fetcher.fetch(server.url("/file"), "file").size == size
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("code", sorted(fledge.net.transport.RETRIED))
def test_passing_status_is_tried_again(
    server: Server, fetcher: Fetcher, reporter: Recorder, code: int
) -> None:
    server.answers["/file"] = in_turn(status(code), content(DATA))
    assert fetcher.fetch(server.url("/file"), "file").digest == DIGEST
    [note] = reporter.notes
    assert f"the server answers {code}" in note
    assert "trying again in 0 s" in note


def test_tries_are_bounded(server: Server, fetcher: Fetcher, cache: Cache) -> None:
    server.answers["/file"] = status(503)
    with pytest.raises(HttpStatusError) as caught:
        fetcher.fetch(server.url("/file"), "file", DIGEST)
    assert caught.value.status == 503
    assert len(server.seen) == fledge.net.fetch.MAX_TRIES
    assert stored(cache) == []


def test_pauses_double(server: Server, cache: Cache, reporter: Recorder) -> None:
    server.answers["/file"] = status(500)
    with pytest.raises(HttpStatusError):
        Fetcher(cache, reporter, backoff=0.001).fetch(server.url("/file"), "file")
    pauses = [note.rpartition(" in ")[2] for note in reporter.notes]
    assert pauses == ["0.001 s", "0.002 s", "0.004 s", "0.008 s"]


@pytest.mark.parametrize(
    ("value", "pause"),
    [
        ("0", "0 s"),
        ("1", "1 s"),
        ("Fri, 31 Dec 1999 23:59:59 GMT", "0 s"),
        ("Fri, 31 Dec 2100 23:59:59 GMT", "1.5 s"),
        ("9" * 5000, "1.5 s"),
        ("86400", "1.5 s"),
        ("-1", "0.25 s"),
        ("nan", "0.25 s"),
        ("soon", "0.25 s"),
    ],
)
def test_retry_after(
    server: Server, monkeypatch: pytest.MonkeyPatch, cache: Cache, value: str, pause: str
) -> None:
    paused: list[float] = []
    monkeypatch.setattr(fledge.net.fetch, "MAX_PAUSE", 1.5)
    monkeypatch.setattr(time, "sleep", paused.append)
    reporter = Recorder()
    server.answers["/file"] = in_turn(status(429, headers={"Retry-After": value}), content(DATA))
    Fetcher(cache, reporter, backoff=0.25).fetch(server.url("/file"), "file")
    assert [f"{seconds:g} s" for seconds in paused] == [pause]
    assert reporter.notes[0].endswith(f"in {pause}")


@pytest.mark.slow
@settings(max_examples=50, deadline=None)
@given(st.text(st.characters(codec="latin-1")) | st.from_regex(r"\w+, \d+ \w+ \d+ \d+:\d+ [-+\w]+"))
def test_hostile_dates(value: str) -> None:
    pause = fledge.net.transport._retry_after(value)
    assert pause is None or pause >= 0
    assert isinstance(fledge.net.fetch._validator({"Last-Modified": value, "Date": value}), str)


def test_download_that_is_cut_again_and_again(server: Server, fetcher: Fetcher) -> None:
    cuts = 70_000
    server.answers["/file"] = content(DATA, cut=cuts)
    assert fetcher.fetch(server.url("/file"), "file", DIGEST).path.read_bytes() == DATA
    assert len(server.seen) > fledge.net.fetch.MAX_TRIES
    assert ranges(server)[:3] == [None, f"bytes={cuts}-", f"bytes={2 * cuts}-"]


def test_download_that_is_reset_again_and_again(server: Server, fetcher: Fetcher) -> None:
    """Unlike an end, a reset may discard data that arrived but was not read."""

    def reset(exchange: Exchange) -> None:
        content(DATA, cut=200_000)(exchange)
        arrived.wait(10)
        arrived.clear()
        linger = bytes([1, 0, 0, 0, 0, 0, 0, 0])
        exchange.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        exchange.connection.close()

    arrived = threading.Event()
    reporter = fetcher.reporter
    assert isinstance(reporter, Recorder)
    reporter.reached = lambda done: arrived.set() if done % 200_000 == 0 else None
    server.answers["/file"] = reset
    assert fetcher.fetch(server.url("/file"), "file", DIGEST).path.read_bytes() == DATA


def test_one_byte_per_connection_is_no_progress(server: Server, fetcher: Fetcher) -> None:
    server.answers["/file"] = content(DATA, cut=1)
    with pytest.raises(NetworkError, match="stopped after 5 of 1000000 bytes"):
        fetcher.fetch(server.url("/file"), "file", DIGEST)
    assert len(server.seen) == fledge.net.fetch.MAX_TRIES


def test_small_steps_add_up_to_progress(server: Server, fetcher: Fetcher) -> None:
    server.answers["/file"] = content(DATA, cut=20_000)
    assert fetcher.fetch(server.url("/file"), "file", DIGEST).size == len(DATA)


def test_going_back_and_forth_is_no_progress(server: Server, fetcher: Fetcher) -> None:
    forth = content(DATA, cut=100_000)
    back = status(416)
    server.answers["/file"] = in_turn(*[forth, back] * 50)
    with pytest.raises(NetworkError):
        fetcher.fetch(server.url("/file"), "file", DIGEST)
    assert len(server.seen) <= 2 * fledge.net.fetch.MAX_TRIES


def test_stalled_transfer_is_resumed(
    server: Server, fetcher: Fetcher, reporter: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fledge.net.connection, "READ_TIMEOUT", 0.1)

    def stall(exchange: Exchange) -> None:
        exchange.reply(200, headers={"Content-Length": str(len(DATA))})
        exchange.wfile.write(DATA[:100_000])
        over.wait(10)

    with released() as over:
        server.answers["/file"] = in_turn(stall, content(DATA))
        assert fetcher.fetch(server.url("/file"), "file", DIGEST).size == len(DATA)
    assert "the server stalled after 100000 of 1000000 bytes" in reporter.notes[0]
    assert ranges(server) == [None, "bytes=100000-"]


@contextmanager
def released() -> Iterator[threading.Event]:
    """An event that a server waits for. It is set at the end in any case."""
    event = threading.Event()
    try:
        yield event
    finally:
        event.set()


@pytest.mark.slow
def test_trickle_is_a_stall(
    server: Server, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fledge.net.connection, "READ_TIMEOUT", 0.1)

    def trickle(exchange: Exchange) -> None:
        exchange.reply(200, headers={"Content-Length": "1000"})
        while not over.wait(0.01):
            exchange.wfile.write(b"x")

    with released() as over:
        server.answers["/file"] = trickle
        with pytest.raises(NetworkError, match=r"stalled after \d+ of 1000 bytes"):
            fetcher.fetch(server.url("/file"), "file")
    assert len(server.seen) == fledge.net.fetch.MAX_TRIES


def slow(exchange: Exchange, data: bytes, over: threading.Event) -> None:
    """Send data, or the part that is requested, at about 400 KiB a second."""
    start = int(exchange.headers.get("Range", "bytes=0-")[len("bytes=") : -1])
    headers = {"Content-Length": str(len(data) - start)}
    if start:
        headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
    exchange.reply(206 if start else 200, headers=headers)
    for position in range(start, len(data), 20 << 10):
        if not over.wait(0.05):
            exchange.wfile.write(data[position : position + (20 << 10)])


@pytest.mark.slow
def test_server_slower_than_the_least_speed_is_given_up(
    server: Server, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that sends 64 KiB a minute, but faster: its tries never end for lack of progress."""
    monkeypatch.setattr(fledge.net.connection, "READ_TIMEOUT", 0.5)
    data = DATA * 8
    with released() as over:
        server.answers["/file"] = partial(slow, data=data, over=over)
        environment = {"FLEDGE_CACHE_DIR": str(cache.root), "FLEDGE_MIN_SPEED": "4096"}
        session = Session(Settings(environment), cache, Reporter(), backoff=0)
        with pytest.raises(NetworkError, match="the server stalled") as caught:
            session.fetcher.fetch(server.url("/file"), "file", Digest.of(data))
        assert "FLEDGE_MIN_SPEED" in caught.value.hint
        assert len(server.seen) <= 2 * fledge.net.fetch.MAX_TRIES


@pytest.mark.slow
@pytest.mark.parametrize("least", ["100", "0"])
def test_slow_server_that_is_fast_enough(
    server: Server, cache: Cache, monkeypatch: pytest.MonkeyPatch, least: str
) -> None:
    monkeypatch.setattr(fledge.net.connection, "READ_TIMEOUT", 0.5)
    with released() as over:
        server.answers["/file"] = partial(slow, data=DATA, over=over)
        session = Session(Settings({"FLEDGE_MIN_SPEED": least}), cache, Reporter(), backoff=0)
        assert session.fetcher.fetch(server.url("/file"), "file").digest == DIGEST
    assert len(server.seen) == 1


def test_downloads_at_the_same_time_share_the_least_speed() -> None:
    pace = Pace(1000)
    with pace.download():
        assert pace.due(60) == 60_000
        with pace.download():
            assert pace.due(60) == 30_000
    assert Pace(0).due(60) == 1


def dribble(exchange: Exchange, start: bytes, endless: bytes, over: threading.Event) -> None:
    """Send one start and then another, repeatedly, until the test ends."""
    exchange.wfile.write(start)
    while not over.wait(0.005):
        exchange.wfile.write(endless)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("start", "endless"),
    [
        pytest.param(b"HTTP/1.1 200 ", b"x", id="status line"),
        pytest.param(b"HTTP/1.1 200 OK\r\nX-Slow: ", b"x", id="header"),
        pytest.param(b"", b"HTTP/1.1 100 Continue\r\n\r\n", id="interim answers"),
    ],
)
def test_head_that_never_ends(
    server: Server,
    fetcher: Fetcher,
    monkeypatch: pytest.MonkeyPatch,
    start: bytes,
    endless: bytes,
) -> None:
    monkeypatch.setattr(fledge.net.connection, "READ_TIMEOUT", 0.5)
    monkeypatch.setattr(fledge.net.fetch, "MAX_TRIES", 2)
    with released() as over:
        slow = partial(dribble, start=start, endless=endless, over=over)
        server.answers["/file"] = in_turn(slow, content(DATA))
        assert fetcher.fetch(server.url("/file"), "file").digest == DIGEST
        server.answers["/file"] = slow
        with pytest.raises(NetworkError, match="did not answer in time"):
            fetcher.fetch(server.url("/file"), "file")
    assert len(server.seen) == 4


@pytest.mark.slow
def test_head_that_never_ends_over_tls(
    fetcher: Fetcher, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    monkeypatch.setattr(fledge.net.connection, "READ_TIMEOUT", 0.1)
    monkeypatch.setattr(fledge.net.fetch, "MAX_TRIES", 2)
    with Server(certificate) as server, released() as over:
        server.answers["/file"] = lambda exchange: dribble(exchange, b"", b"x", over)
        with pytest.raises(NetworkError, match="did not answer in time"):
            fetcher.fetch(server.url("/file", "localhost"), "file")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("start", "endless"),
    [
        pytest.param(b"", b"0", id="size of a chunk"),
        pytest.param(b"0\r\n", b"X-More: x\r\n", id="trailers"),
    ],
)
def test_chunks_that_never_end_are_a_stall(
    server: Server,
    fetcher: Fetcher,
    monkeypatch: pytest.MonkeyPatch,
    start: bytes,
    endless: bytes,
) -> None:
    monkeypatch.setattr(fledge.net.connection, "READ_TIMEOUT", 0.1)
    monkeypatch.setattr(fledge.net.fetch, "MAX_TRIES", 2)

    def answer(exchange: Exchange) -> None:
        chunked(b"body", end=start)(exchange)
        dribble(exchange, b"", endless, over)

    with released() as over:
        server.answers["/file"] = answer
        with pytest.raises(NetworkError, match="stalled after 4 bytes"):
            fetcher.fetch(server.url("/file"), "file")
    assert len(server.seen) == 2


def test_truncated_file(server: Server, fetcher: Fetcher) -> None:
    server.answers["/file"] = status(200, b"half", {"Content-Length": "8"})

    def answer(exchange: Exchange) -> None:
        exchange.reply(200, b"half", {"Content-Length": "8"}, cut=4)

    server.answers["/file"] = answer
    with pytest.raises(NetworkError, match="the server stopped after 4 of 8 bytes"):
        fetcher.fetch(server.url("/file"), "file")


def test_partial_of_an_earlier_run_is_resumed(
    server: Server, fetcher: Fetcher, reporter: Recorder, cache: Cache
) -> None:
    leave_partial(cache, DATA[:300_000])
    server.answers["/file"] = content(DATA)
    assert fetcher.fetch(server.url("/file"), "file", DIGEST).path.read_bytes() == DATA
    assert ranges(server) == ["bytes=300000-"]
    assert reporter.totals == [(300_000, len(DATA))]
    assert reporter.done == len(DATA)


def test_partial_that_was_complete_needs_no_server(fetcher: Fetcher, cache: Cache) -> None:
    leave_partial(cache, DATA)
    url = f"http://127.0.0.1:{unused_port()}/file"
    assert fetcher.fetch(url, "file", DIGEST).path.read_bytes() == DATA


def test_damaged_partial_is_found_out(
    server: Server, fetcher: Fetcher, reporter: Recorder, cache: Cache
) -> None:
    leave_partial(cache, b"x" * 300_000)
    server.answers["/file"] = content(DATA)
    assert fetcher.fetch(server.url("/file"), "file", DIGEST).path.read_bytes() == DATA
    assert ranges(server) == ["bytes=300000-", None]
    assert "wrong checksum" in reporter.notes[0]


def test_wrong_checksum_after_a_resume_is_wrong_in_the_end(
    server: Server, fetcher: Fetcher, cache: Cache
) -> None:
    leave_partial(cache, b"x" * 300_000)
    server.answers["/file"] = content(DATA[::-1])
    with pytest.raises(CorruptError):
        fetcher.fetch(server.url("/file"), "file", DIGEST)
    assert ranges(server) == ["bytes=300000-", None]
    assert stored(cache) == []


def test_server_without_ranges(server: Server, fetcher: Fetcher, cache: Cache) -> None:
    leave_partial(cache, DATA[:300_000])
    server.answers["/file"] = status(200, DATA)
    assert fetcher.fetch(server.url("/file"), "file", DIGEST).path.read_bytes() == DATA


def test_partial_longer_than_the_file(server: Server, fetcher: Fetcher, cache: Cache) -> None:
    leave_partial(cache, DATA + b"more")
    server.answers["/file"] = content(DATA)
    assert fetcher.fetch(server.url("/file"), "file", DIGEST).path.read_bytes() == DATA
    assert ranges(server) == [f"bytes={len(DATA) + 4}-", None]


@pytest.mark.parametrize("answered", ["bytes 0-9/10", "bytes */10", "nonsense", ""])
def test_other_range_than_asked_for(
    server: Server, fetcher: Fetcher, reporter: Recorder, cache: Cache, answered: str
) -> None:
    leave_partial(cache, DATA[:300_000])
    other = status(206, DATA[:10], {"Content-Range": answered})
    server.answers["/file"] = in_turn(other, content(DATA))
    assert fetcher.fetch(server.url("/file"), "file", DIGEST).path.read_bytes() == DATA
    assert ranges(server) == ["bytes=300000-", None]
    assert "cannot be resumed" in reporter.notes[0]


def test_ranges_shorter_than_asked_for(server: Server, fetcher: Fetcher) -> None:
    def answer(exchange: Exchange) -> None:
        start = int(exchange.headers.get("Range", "bytes=0-")[6:-1])
        part = DATA[start : start + 400_000]
        span = f"bytes {start}-{start + len(part) - 1}/{len(DATA)}"
        exchange.reply(206, part, {"Content-Range": span})

    server.answers["/file"] = in_turn(content(DATA, cut=100_000), answer)
    assert fetcher.fetch(server.url("/file"), "file", DIGEST).path.read_bytes() == DATA


def test_part_that_nobody_asked_for(server: Server, fetcher: Fetcher) -> None:
    server.answers["/file"] = status(206, DATA[:10], {"Content-Range": "bytes 0-9/10"})
    with pytest.raises(HttpStatusError, match="206"):
        fetcher.fetch(server.url("/file"), "file")


MODIFIED = email.utils.formatdate(1, usegmt=True)


@pytest.mark.parametrize(
    ("headers", "condition"),
    [
        ({"ETag": '"1"'}, '"1"'),
        ({"Last-Modified": MODIFIED}, MODIFIED),
        ({"ETag": '"1"', "Last-Modified": MODIFIED}, '"1"'),
        ({"ETag": 'W/"1"', "Last-Modified": MODIFIED}, None),
        ({"Last-Modified": "yesterday"}, None),
        ({}, None),
    ],
)
def test_unpinned_download_is_resumed_if_it_is_the_same_file(
    server: Server, fetcher: Fetcher, headers: dict[str, str], condition: str | None
) -> None:
    server.answers["/file"] = in_turn(content(DATA, headers, cut=100_000), content(DATA, headers))
    assert fetcher.fetch(server.url("/file"), "file").digest == DIGEST
    assert ranges(server) == [None, condition and "bytes=100000-"]
    assert server.seen[1].headers["If-Range"] == condition


@pytest.mark.parametrize(("second", "strong"), [("08", True), ("09", False), ("10", False)])
def test_time_of_change_must_be_older_than_the_answer(second: str, strong: bool) -> None:
    """Otherwise the file could have changed twice in that second."""
    sent, modified = (f"Sun, 06 Nov 1994 08:49:{s} GMT" for s in ("09", second))
    validator = fledge.net.fetch._validator({"Date": sent, "Last-Modified": modified})
    assert validator == (modified if strong else "")


def test_unpinned_file_that_changes_meanwhile(server: Server, fetcher: Fetcher) -> None:
    other = DATA[::-1]
    server.answers["/file"] = in_turn(
        content(DATA, TAG, cut=100_000), content(other, {"ETag": '"2"'})
    )
    assert fetcher.fetch(server.url("/file"), "file").path.read_bytes() == other


def test_pinned_download_does_not_depend_on_tags(server: Server, fetcher: Fetcher) -> None:
    server.answers["/file"] = in_turn(content(DATA, TAG, 100_000), content(DATA, {"ETag": '"2"'}))
    fetcher.fetch(server.url("/file"), "file", DIGEST)
    assert ranges(server) == [None, "bytes=100000-"]
    assert server.seen[1].headers["If-Range"] is None


STEPS = st.one_of(
    st.integers(0, len(DATA)).map(lambda cut: content(DATA, TAG, cut)),
    st.integers(0, len(DATA)).map(lambda cut: content(DATA[::-1], {"ETag": '"2"'}, cut)),
    st.sampled_from([200, 204, 206, 404, 416, 503]).map(status),
    st.sampled_from(["bytes 0-9/10", "bytes 9-8/7", "bytes 100000-/*"]).map(
        lambda span: status(206, DATA[:10], {"Content-Range": span})
    ),
    st.just(content(DATA, TAG)),
)


@pytest.mark.slow
@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(STEPS, max_size=8), st.booleans())
def test_whatever_the_server_does(
    server: Server,
    tmp_path_factory: pytest.TempPathFactory,
    steps: list[Answer],
    pinned: bool,
) -> None:
    """The result is the whole file or an error, and the cache stays valid."""
    cache = Cache(tmp_path_factory.mktemp("cache"))
    server.answers["/file"] = in_turn(*steps, content(DATA, TAG))
    try:
        blob = Fetcher(cache, Reporter(), backoff=0).fetch(
            server.url("/file"), "file", DIGEST if pinned else None
        )
    except FledgeError:
        assert stored(cache) in ([], [DIGEST.hex])
        assert cache.find(DIGEST) is None
    else:
        assert blob.path.read_bytes() in ((DATA,) if pinned else (DATA, DATA[::-1], b""))
        assert stored(cache) == [blob.digest.hex]


def test_file_that_never_ends(server: Server, fetcher: Fetcher, cache: Cache) -> None:
    def endless(exchange: Exchange) -> None:
        exchange.send_response(200)
        exchange.end_headers()
        while True:
            exchange.wfile.write(bytes(10_000))

    server.answers["/file"] = endless
    with pytest.raises(NetworkError, match="more than 300000 bytes"):
        fetcher.fetch(server.url("/file"), "file", DIGEST, limit=300_000)
    assert len(server.seen) == 1
    assert stored(cache) == []


def test_file_that_is_announced_too_large(server: Server, fetcher: Fetcher) -> None:
    server.answers["/file"] = status(200, headers={"Content-Length": str(1 << 32)})
    with pytest.raises(NetworkError, match="more than 4294967295 bytes"):
        fetcher.fetch(server.url("/file"), "file")


@pytest.mark.parametrize("code", [401, 403, 404, 410, 418, 501, 304, 204])
def test_status_that_is_no_success(server: Server, fetcher: Fetcher, code: int) -> None:
    server.answers["/file"] = status(code, b'{"message": "no"}', {"X-Reason": "none"})
    with pytest.raises(HttpStatusError) as caught:
        fetcher.fetch(server.url("/file"), "file")
    assert caught.value.status == code
    assert caught.value.headers["x-reason"] == "none"
    assert caught.value.message.startswith(f"{server.url('/file')}: the server answers {code} ")
    assert caught.value.hint
    assert len(server.seen) == 1


def test_what_an_error_says_is_kept_in_part(server: Server, fetcher: Fetcher) -> None:
    server.answers["/file"] = status(403, b"\xff" + b"x" * 100_000)
    with pytest.raises(HttpStatusError) as caught:
        fetcher.fetch(server.url("/file"), "file")
    assert caught.value.words == "\ufffd" + "x" * 196 + "..."
    assert caught.value.words in caught.value.message


def test_redirect(server: Server, fetcher: Fetcher) -> None:
    server.answers["/a"] = redirect("/b")
    server.answers["/b"] = redirect(server.url("/file"))
    server.answers["/file"] = content(DATA)
    assert fetcher.fetch(server.url("/a"), "file", headers=TOKEN).digest == DIGEST
    assert [request.headers["Authorization"] for request in server.seen] == ["Bearer secret"] * 3


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_login_is_not_sent_elsewhere(server: Server, fetcher: Fetcher, host: str) -> None:
    with Server() as other:
        server.answers["/file"] = redirect(other.url("/file", host))
        other.answers["/file"] = content(DATA)
        fetcher.fetch(server.url("/file"), "file", headers={"authorization": "Bearer secret"})
        assert server.seen[0].headers["Authorization"] == "Bearer secret"
        assert other.seen[0].headers["Authorization"] is None


def test_login_is_not_sent_in_the_clear(fetcher: Fetcher) -> None:
    request = fetcher._transport._prepare("https://example.org/", TOKEN, "", find_login=False)
    following = fetcher._transport._redirect(request, "http://example.org/", "")
    assert following.url == "http://example.org/"
    assert "Authorization" not in following.headers


def test_login_that_was_dropped_does_not_come_back(server: Server, fetcher: Fetcher) -> None:
    with Server() as other:
        server.answers["/file"] = in_turn(redirect(other.url("/file")), content(DATA))
        other.answers["/file"] = redirect(server.url("/file"))
        fetcher.fetch(server.url("/file"), "file", headers=TOKEN)
    assert server.seen[1].headers["Authorization"] is None


def test_host_that_parsers_read_differently(server: Server, fetcher: Fetcher) -> None:
    """For some parsers the host follows a backslash, for others the path."""
    with Server() as other:
        host = server.url("").removeprefix("http:")
        server.answers["/file"] = redirect(other.url("\\@") + host.removeprefix("//") + "/file")
        with pytest.raises(FledgeError):
            fetcher.fetch(server.url("/file"), "file", headers=TOKEN)
        assert all(request.headers["Authorization"] is None for request in other.seen)


def test_range_survives_a_redirect(server: Server, fetcher: Fetcher, cache: Cache) -> None:
    leave_partial(cache, DATA[:300_000])
    server.answers["/a"] = redirect("/file")
    server.answers["/file"] = content(DATA)
    fetcher.fetch(server.url("/a"), "file", DIGEST)
    assert ranges(server) == ["bytes=300000-"] * 2


def test_failure_behind_a_redirect_names_both_hosts(server: Server, fetcher: Fetcher) -> None:
    with Server() as other:
        server.answers["/file"] = redirect(other.url("/gone", "localhost"))
        with pytest.raises(HttpStatusError) as caught:
            fetcher.fetch(server.url("/file"), "file")
        there = other.url("", "localhost").removeprefix("http://")
    assert f"{server.url('/file')} (redirected to {there}): " in caught.value.message


def test_redirects_are_bounded(server: Server, fetcher: Fetcher) -> None:
    server.answers["/file"] = redirect("/file")
    with pytest.raises(NetworkError, match="more than 10 redirects"):
        fetcher.fetch(server.url("/file"), "file")
    assert len(server.seen) == 11


@pytest.mark.parametrize(
    "location", ["file:///etc/passwd", "ftp://127.0.0.1/", "data:,x", "http://[", "http://x:y/"]
)
def test_redirect_to_what_is_no_web_page(server: Server, fetcher: Fetcher, location: str) -> None:
    server.answers["/file"] = redirect(location)
    with pytest.raises(NetworkError, match=r"redirects to a URL that is neither|not a valid URL"):
        fetcher.fetch(server.url("/file"), "file")


def test_body_of_a_redirect_is_not_read(server: Server, fetcher: Fetcher) -> None:
    def endless(exchange: Exchange) -> None:
        exchange.reply(302, headers={"Location": "/file", "Content-Length": str(1 << 40)})
        while True:
            exchange.wfile.write(bytes(10_000))

    server.answers["/a"] = endless
    server.answers["/file"] = content(DATA)
    assert fetcher.fetch(server.url("/a"), "file").digest == DIGEST


def test_login_in_the_url(server: Server, fetcher: Fetcher, reporter: Recorder) -> None:
    server.answers["/file"] = in_turn(redirect("/there"))
    server.answers["/there"] = in_turn(status(503), status(404))
    with pytest.raises(HttpStatusError) as caught:
        fetcher.fetch(server.url("/file", "me:secret@127.0.0.1"), "file")
    assert {request.headers["Authorization"] for request in server.seen} == {"Basic bWU6c2VjcmV0"}
    for said in (*reporter.notes, caught.value.message, caught.value.hint):
        assert "secret" not in said
    assert caught.value.message.startswith(server.url("/file"))


def test_login_from_netrc(server: Server, fetcher: Fetcher, tmp_path: Path) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password secret\n")
    server.answers["/file"] = content(DATA)
    server.answers["/there"] = redirect(server.url("/on"))
    server.answers["/on"] = redirect("/file")
    fetcher.fetch(server.url("/file"), "file")
    fetcher.fetch(server.url("/file"), "file", headers=TOKEN)
    logins = [request.headers["Authorization"] for request in server.seen]
    assert logins == ["Basic bWU6c2VjcmV0", "Bearer secret"]
    # The server that redirects must not choose whose login is used.
    fetcher.fetch(server.url("/there", "localhost"), "file")
    assert [request.headers["Authorization"] for request in server.seen[2:]] == [None] * 3


@pytest.mark.parametrize(
    "text",
    [
        "default login me password secret",
        "machine localhost login me password secret\ndefault login me password secret",
        "machine 127.0.0.1:80 login me password secret",
        "machine 127.0.0.1 login",
    ],
)
def test_netrc_without_an_entry_for_the_host(
    server: Server, fetcher: Fetcher, tmp_path: Path, text: str
) -> None:
    (tmp_path / "netrc").write_text(text)
    server.answers["/file"] = content(DATA)
    fetcher.fetch(server.url("/file"), "file")
    assert server.seen[0].headers["Authorization"] is None


@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "kernel"])
def test_netrc_and_ca_bundle_that_are_no_regular_files(
    server: Server,
    cache: Cache,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    certificate: Path,
) -> None:
    path = irregular(tmp_path, kind)
    fetcher = Fetcher(cache, Reporter(), backoff=0, _transport=Transport(None, [path]))
    with pytest.raises(ConfigError, match="not a regular file"):
        fetcher.fetch(server.url("/file"), "file")
    if kind != "folder":  # OpenSSL takes a folder of certificates, too
        for name in ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"):
            session = Session(Settings({name: str(path)}), cache, Reporter(), backoff=0)
            monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(path) if name[0] == "R" else "")
            with Server(certificate) as secure, pytest.raises(HostError, match="not a regular"):
                session.fetcher.fetch(secure.url("/file", "localhost"), "file")


@pytest.mark.parametrize(
    ("url", "printed"),
    [
        ("https://me:secret@example.org/a?b#c", "https://example.org/a?b#c"),
        ("https://me:se@ret@example.org/@scope", "https://example.org/@scope"),
        ("https://example.org/\x1b[2J\n\u202e", "https://example.org/%1B[2J%0A%E2%80%AE"),
        ("https://example.org/%20", "https://example.org/%20"),
    ],
)
def test_printable_url(url: str, printed: str) -> None:
    assert printable_url(url) == printed


@pytest.mark.parametrize("token", ["line\nbreak", "“quoted”"])
def test_header_that_cannot_be_sent(server: Server, fetcher: Fetcher, token: str) -> None:
    with pytest.raises(ConfigError, match="header") as caught:
        fetcher.fetch(server.url("/file"), "file", headers={"Authorization": token})
    assert token not in caught.value.message


def test_proxy(fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch) -> None:
    with Server() as proxy:
        monkeypatch.setenv("http_proxy", proxy.url("", "me:secret@127.0.0.1"))
        proxy.answers["http://far.invalid/file"] = content(DATA)
        assert fetcher.fetch("http://far.invalid/file", "file", DIGEST).size == len(DATA)
        assert proxy.seen[0].headers["Proxy-Authorization"] == "Basic bWU6c2VjcmV0"


def test_no_proxy(server: Server, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{unused_port()}")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server.answers["/file"] = content(DATA)
    assert fetcher.fetch(server.url("/file"), "file").digest == DIGEST


@pytest.mark.parametrize(
    ("code", "tries", "hint"), [(407, 1, "user name"), (403, 1, "login"), (503, 5, "https_proxy")]
)
def test_proxy_that_refuses_a_tunnel(
    fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch, code: int, tries: int, hint: str
) -> None:
    with Server() as proxy:
        monkeypatch.setenv("https_proxy", proxy.url("", "me:secret@127.0.0.1"))
        proxy.answers["far.invalid:443"] = status(code)
        with pytest.raises(NetworkError) as caught:
            fetcher.fetch("https://far.invalid/file", "file")
        assert f"the proxy {proxy.url('')} answers {code}" in caught.value.message
        assert hint in caught.value.hint
        assert len(proxy.seen) == tries


@pytest.mark.parametrize(
    ("proxy", "said"),
    [
        ("http://me:secret@127.0.0.1:{unused}", r"http://127.*: connection refused"),
        ("socks5://me:secret@127.0.0.1:1", "not supported"),
        ("http://", "URL of the proxy is not valid"),
    ],
)
def test_proxy_that_does_not_work(
    fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch, proxy: str, said: str
) -> None:
    monkeypatch.setenv("http_proxy", proxy.format(unused=unused_port()))
    with pytest.raises(NetworkError, match=said) as caught:
        fetcher.fetch("http://far.invalid/file", "file")
    assert "http_proxy" in caught.value.hint
    assert "secret" not in caught.value.message


def test_refused_connection(fetcher: Fetcher) -> None:
    host = f"127.0.0.1:{unused_port()}"
    with pytest.raises(NetworkError, match=f"{host} refuses the connection") as caught:
        fetcher.fetch(f"http://{host}/file", "file")
    assert "urllib3" not in caught.value.message


def test_unknown_name(fetcher: Fetcher) -> None:
    with pytest.raises(NetworkError, match=r"the server name\.invalid cannot be found"):
        fetcher.fetch("http://name.invalid/file", "file")


def test_server_that_hangs_up(server: Server, fetcher: Fetcher, reporter: Recorder) -> None:
    def hang_up(exchange: Exchange) -> None:
        exchange.close_connection = True

    server.answers["/file"] = in_turn(hang_up, content(DATA))
    assert fetcher.fetch(server.url("/file"), "file").digest == DIGEST
    assert "closed the connection without an answer" in reporter.notes[0]


def test_server_that_speaks_something_else(server: Server, fetcher: Fetcher) -> None:
    def greet(exchange: Exchange) -> None:
        exchange.wfile.write(b"220 smtp.example.org ESMTP\r\n")
        exchange.close_connection = True

    server.answers["/file"] = greet
    with pytest.raises(NetworkError, match="does not speak HTTP"):
        fetcher.fetch(server.url("/file"), "file")


@pytest.mark.slow
def test_server_that_does_not_answer(
    server: Server, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fledge.net.connection, "READ_TIMEOUT", 0.05)

    def silence(exchange: Exchange) -> None:
        over.wait(10)
        exchange.close_connection = True

    with released() as over:
        server.answers["/file"] = silence
        with pytest.raises(NetworkError, match="did not answer in time"):
            fetcher.fetch(server.url("/file"), "file")


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a self-signed certificate for localhost and its key, in one file."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl")
    path = tmp_path_factory.mktemp("tls") / "certificate.pem"
    command = [openssl, "req", "-x509", "-nodes", "-newkey", "ec", "-keyout", str(path)]
    command += ["-pkeyopt", "ec_paramgen_curve:prime256v1", "-subj", "/CN=localhost"]
    command += ["-out", str(path), "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run(command, check=True, capture_output=True)
    return path


def test_untrusted_certificate(fetcher: Fetcher, reporter: Recorder, certificate: Path) -> None:
    with Server(certificate) as server:
        with pytest.raises(NetworkError, match="cannot be trusted: self") as caught:
            fetcher.fetch(server.url("/file", "localhost"), "file")
        assert "REQUESTS_CA_BUNDLE" in caught.value.hint
        assert reporter.notes == []
        assert server.seen == []


def test_own_certificate_authority(
    fetcher: Fetcher, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    with Server(certificate) as server, Server() as plain:
        server.answers["/file"] = in_turn(content(DATA), redirect(plain.url("/file", "localhost")))
        url = server.url("/file", "localhost")
        assert fetcher.fetch(url, "file").digest == DIGEST
        plain.answers["/file"] = content(b"not secret")
        assert fetcher.fetch(url, "file", headers=TOKEN).path.read_bytes() == b"not secret"
        assert server.seen[1].headers["Authorization"] == "Bearer secret"
        assert plain.seen[0].headers["Authorization"] is None
        with pytest.raises(NetworkError, match=r"cannot be trusted: .*127\.0\.0\.1"):
            fetcher.fetch(server.url("/file"), "file")


@pytest.mark.slow
def test_https_where_there_is_none(server: Server, fetcher: Fetcher) -> None:
    with pytest.raises(NetworkError, match="no secure connection to 127"):
        fetcher.fetch(server.url("/file").replace("http:", "https:"), "file")


def test_missing_certificate_authority(fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nowhere.pem")
    with pytest.raises(HostError, match=r"/nowhere\.pem") as caught:
        fetcher.fetch("https://127.0.0.1:1/file", "file")
    assert "REQUESTS_CA_BUNDLE" in caught.value.hint


@pytest.mark.parametrize("host", ["", "localhost"])
def test_local_file(fetcher: Fetcher, tmp_path: Path, cache: Cache, host: str) -> None:
    leave_partial(cache, b"of a download")
    path = tmp_path / "a file%"
    path.write_bytes(DATA)
    url = f"file://{host}{path}".replace("%", "%25").replace(" ", "%20")
    blob = fetcher.fetch(url, "file", DIGEST)
    assert blob.path.read_bytes() == DATA
    offline = Fetcher(fetcher.cache, Reporter(), offline=True)
    for pin in (DIGEST, None):
        assert offline.fetch(url, "file", pin).path == blob.path


def test_local_file_with_wrong_checksum(fetcher: Fetcher, tmp_path: Path, cache: Cache) -> None:
    leave_partial(cache, b"something")
    (tmp_path / "file").write_bytes(DATA[::-1])
    with pytest.raises(CorruptError):
        fetcher.fetch(f"file://{tmp_path}/file", "file", DIGEST)
    assert stored(cache) == []


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("file:///no/such/file", "no such file"),
        ("file:///", "not a regular file"),
        ("file:///dev/zero", "not a regular file"),
        ("file:///a%00b", "null"),
        ("file:relative", "not on this machine"),
        ("file://server/share", "not on this machine"),
    ],
)
def test_local_file_that_cannot_be_read(fetcher: Fetcher, url: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        fetcher.fetch(url, "file")
    assert url in caught.value.message


def test_local_file_that_is_too_large(
    fetcher: Fetcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fledge.net.fetch, "MAX_DOWNLOAD_SIZE", 10)
    (tmp_path / "file").write_bytes(bytes(11))
    with pytest.raises(ConfigError, match="more than 10 bytes"):
        fetcher.fetch(f"file://{tmp_path}/file", "file")


@pytest.mark.parametrize(
    "url",
    [
        *("", "busybox", "/bin/busybox", "data:,x", "ftp://me:secret@host/"),
        *("http://", "https:///x", "http://host:port/", "http://me:sec/ret@host/", "http://[::1"),
    ],
)
def test_what_is_no_url(fetcher: Fetcher, url: str) -> None:
    with pytest.raises(ConfigError, match="not a URL that can be downloaded") as caught:
        fetcher.fetch(url, "file")
    assert "ret" not in caught.value.message
    assert "https://" in caught.value.hint


def test_offline(server: Server, cache: Cache) -> None:
    fetcher = Fetcher(cache, Reporter(), offline=True)
    url = server.url("/file", "me:secret@127.0.0.1")
    with pytest.raises(NetworkError) as caught:
        fetcher.fetch(url, "busybox", DIGEST)
    for part in ("busybox", server.url("/file"), DIGEST.hex):
        assert part in caught.value.message
    assert "once without --offline" in caught.value.hint
    with pytest.raises(NetworkError, match="without a checksum") as caught:
        fetcher.fetch(url, "busybox")
    assert "sha256" in caught.value.hint
    with pytest.raises(NetworkError, match="cannot be looked up offline"):
        fetcher.json(url)
    assert server.seen == []

    server.answers["/file"] = content(DATA)
    blob = Fetcher(cache, Reporter()).fetch(url, "busybox", DIGEST)
    assert fetcher.fetch(url, "busybox", DIGEST).path == blob.path


def test_small_answers(server: Server, fetcher: Fetcher, cache: Cache) -> None:
    server.answers["/text"] = in_turn(
        status(503), content("grüße".encode(), cut=3), content("grüße".encode())
    )
    server.answers["/json"] = content(json.dumps({"tag": ["v1"]}).encode())
    assert fetcher.text(server.url("/text")) == "grüße"
    assert fetcher.json(server.url("/json"), TOKEN) == {"tag": ["v1"]}
    assert server.seen[-1].headers["Authorization"] == "Bearer secret"
    assert ranges(server) == [None] * 4
    assert stored(cache) == []


def test_small_local_answer(fetcher: Fetcher, tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"text")
    assert fetcher.text(f"file://{tmp_path}/text") == "text"
    with pytest.raises(ConfigError, match="more than 3 bytes"):
        fetcher.text(f"file://{tmp_path}/text", limit=3)


@pytest.mark.parametrize("body", [b"<html>", b"[" * 200_000, b"9" * 5000, b"\xff", b""])
def test_answer_that_is_no_json(server: Server, fetcher: Fetcher, body: bytes) -> None:
    server.answers["/json"] = content(body)
    with pytest.raises(NetworkError, match="the answer is not JSON"):
        fetcher.json(server.url("/json"))


@pytest.mark.parametrize(
    ("body", "described"),
    [
        (b"", "but nothing"),
        (b" \n<HTML lang=en><title>\nLog in\n</title>", 'but a web page with the title "Log in"'),
        (b"<!doctype html>", "but a web page"),
        (b"\x1b" * 100, "but 100 bytes that begin with"),
    ],
)
def test_answer_is_described(server: Server, fetcher: Fetcher, body: bytes, described: str) -> None:
    server.answers["/json"] = content(body)
    with pytest.raises(NetworkError) as caught:
        fetcher.json(server.url("/json"))
    assert described in caught.value.message
    assert caught.value.message.isprintable()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"errors": [{"code": "DENIED", "message": "pay first"}]}', "pay first"),
        (b'{"error": "invalid_grant", "error_description": "expired"}', "expired"),
        (b'{"message": "rate limit"}', "rate limit"),
        (b'{"errors": [1], "message": 2}', ""),
        (b"[" * 4000, ""),
        (b'{"message": "cut', ""),
        (b"<html><title>403</title>", "403"),
        (b"<?xml version='1.0'?><Error/>", ""),
        (b"plain\n  text\x1b[0m", "plain text\\x1b[0m"),
        (b"", ""),
    ],
)
def test_words_of_a_refusal(server: Server, fetcher: Fetcher, body: bytes, words: str) -> None:
    server.answers["/json"] = status(403, body)
    with pytest.raises(HttpStatusError) as caught:
        fetcher.json(server.url("/json"))
    assert caught.value.words == words
    assert caught.value.message.endswith(f"says: {words}" if words else "Forbidden")


@pytest.mark.parametrize("code", [400, 403, 501])
def test_range_that_is_refused(server: Server, fetcher: Fetcher, cache: Cache, code: int) -> None:
    def answer(exchange: Exchange) -> None:
        if exchange.headers["Range"]:
            exchange.reply(code)
        else:
            exchange.reply(200, DATA, cut=None if len(server.seen) > 1 else 300_000)

    server.answers["/file"] = answer
    assert fetcher.fetch(server.url("/file"), "file", DIGEST).path.read_bytes() == DATA
    assert ranges(server) == [None, "bytes=300000-", None]


def encoded(body: bytes, cut: int | None = None) -> Answer:
    headers = {"Content-Encoding": "gzip"}
    return lambda exchange: exchange.reply(200, body, headers, cut)


@pytest.mark.parametrize("digest", [None, DIGEST])
def test_file_that_comes_compressed(
    server: Server, fetcher: Fetcher, digest: Digest | None
) -> None:
    packed = gzip.compress(DATA)
    server.answers["/file"] = in_turn(encoded(packed, cut=300_000), encoded(packed))
    assert fetcher.fetch(server.url("/file"), "file", digest).path.read_bytes() == DATA


def test_file_with_a_wrong_encoding(server: Server, fetcher: Fetcher) -> None:
    packed = gzip.compress(DATA)
    for body, digest in ((DATA, None), (DATA, DIGEST), (packed, Digest.of(packed))):
        server.answers["/file"] = encoded(body)
        assert fetcher.fetch(server.url("/file"), "file", digest).path.read_bytes() == body
    server.answers["/file"] = encoded(packed[:-100])
    with pytest.raises(NetworkError, match="Content-Encoding: gzip, but it is truncated"):
        fetcher.fetch(server.url("/file"), "file")


def test_compressed_answer_that_is_too_large(server: Server, fetcher: Fetcher) -> None:
    server.answers["/file"] = encoded(gzip.compress(bytes(10 << 20)))
    with pytest.raises(NetworkError, match="more than 1000 bytes"):
        fetcher.text(server.url("/file"), limit=1000)
    with pytest.raises(NetworkError, match="more than 1000 bytes"):
        fetcher.fetch(server.url("/file"), "file", limit=1000)


def test_answer_that_is_no_text(server: Server, fetcher: Fetcher) -> None:
    server.answers["/text"] = content(b"\xff")
    with pytest.raises(NetworkError, match="the answer is not text"):
        fetcher.text(server.url("/text"))


def test_answer_that_is_too_large(server: Server, fetcher: Fetcher) -> None:
    server.answers["/text"] = chunked(DATA, end=b"0\r\n\r\n")
    with pytest.raises(NetworkError, match="more than 1000 bytes"):
        fetcher.text(server.url("/text"), limit=1000)


def halting(halted: threading.Event, go_on: threading.Event) -> Answer:
    """Serves the file but stops after 300,000 bytes."""

    def answer(exchange: Exchange) -> None:
        exchange.reply(200, headers={"Content-Length": str(len(DATA))})
        exchange.wfile.write(DATA[:300_000])
        halted.set()
        go_on.wait(10)
        exchange.wfile.write(DATA[300_000:])

    return answer


SCRIPT = """
import sys
from pathlib import Path
from fledge.store.cache import Cache
from fledge.net.fetch import Fetcher
from fledge.report import Reporter
from fledge.tree.content import read_content
from fledge.tree.digest import Digest
Fetcher(Cache(Path(sys.argv[1])), Reporter()).fetch(sys.argv[2], "file", Digest(sys.argv[3]))
"""


def other_process(cache: Cache, url: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(cache.root), url, DIGEST.hex])


@pytest.mark.slow
def test_two_processes_download_once(
    server: Server, fetcher: Fetcher, reporter: Recorder, cache: Cache
) -> None:
    halted = threading.Event()
    with released() as go_on:
        server.answers["/file"] = halting(halted, go_on)

        def note(message: str) -> None:
            assert "waiting for another build" in message
            go_on.set()

        with other_process(cache, server.url("/file")) as other:
            assert halted.wait(10)
            reporter.note = note  # type: ignore[method-assign]
            assert fetcher.fetch(server.url("/file"), "file", DIGEST).path.read_bytes() == DATA
        assert other.returncode == 0
    assert len(server.seen) == 1
    assert stored(cache) == [DIGEST.hex]


def test_many_threads_download_once(server: Server, fetcher: Fetcher, cache: Cache) -> None:
    server.answers["/file"] = content(DATA)
    with ThreadPoolExecutor(8) as pool:
        blobs = pool.map(fetcher.fetch, [server.url("/file")] * 16, ["file"] * 16, [DIGEST] * 16)
    assert len({blob.path for blob in blobs}) == len(server.seen) == 1
    assert stored(cache) == [DIGEST.hex]


@pytest.mark.slow
def test_download_of_a_killed_process_is_resumed(
    server: Server, fetcher: Fetcher, cache: Cache
) -> None:
    halted = threading.Event()
    with released() as go_on:
        server.answers["/file"] = in_turn(halting(halted, go_on), content(DATA))
        with other_process(cache, server.url("/file")) as other:
            assert halted.wait(10)
            partial = cache.root / "partial" / DIGEST.hex
            while partial.stat().st_size < 300_000:
                time.sleep(0.01)
            other.send_signal(signal.SIGKILL)
    assert fetcher.fetch(server.url("/file"), "file", DIGEST).path.read_bytes() == DATA
    assert ranges(server) == [None, "bytes=300000-"]


@pytest.mark.parametrize("pinned", [True, False])
def test_interrupted_download(
    server: Server, fetcher: Fetcher, reporter: Recorder, cache: Cache, pinned: bool
) -> None:
    server.answers["/file"] = content(DATA)

    def interrupt(done: int) -> None:
        reporter.reached = lambda done: None
        signal.raise_signal(signal.SIGINT)

    reporter.reached = interrupt
    digest = DIGEST if pinned else None
    with pytest.raises(KeyboardInterrupt):
        fetcher.fetch(server.url("/file"), "file", digest)
    assert stored(cache) == ([DIGEST.hex] if pinned else [])
    assert cache.find(DIGEST) is None
    assert fetcher.fetch(server.url("/file"), "file", digest).path.read_bytes() == DATA
    assert bool(ranges(server)[1]) == pinned
