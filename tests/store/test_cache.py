import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fledge.errors import FledgeError, HostError
from fledge.store.cache import Cache
from fledge.tree.content import Blob, read_content
from fledge.tree.digest import Digest
from tests.support.rights import without_rights

DATA = b"the bytes of a blob"
DIGEST = Digest.of(DATA)


def nobody_waits() -> None:
    raise AssertionError("another build has the partial")


def store(cache: Cache, data: bytes = DATA, digest: Digest | None = DIGEST) -> Blob:
    with cache.partial(digest, nobody_waits) as partial:
        partial.write(data)
        return cache.add(partial)


def unfinished(cache: Cache) -> list[str]:
    return sorted(path.name for path in (cache.root / "partial").iterdir())


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def test_what_is_added_is_found(cache: Cache) -> None:
    blob = store(cache)
    assert blob == Blob(cache.root / "blobs/sha256" / DIGEST.hex, 0, len(DATA), DIGEST)
    assert cache.find(DIGEST) == blob
    assert b"".join(read_content(blob)) == DATA
    assert blob.path.stat().st_mode & 0o777 == 0o444
    assert unfinished(cache) == []


def test_a_blob_is_named_by_what_it_holds(cache: Cache) -> None:
    assert store(cache, digest=None).path.name == DIGEST.hex


def test_adding_twice(cache: Cache) -> None:
    assert store(cache) == store(cache)


def test_a_cache_of_another_user_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)  # the user nobody cannot enter the parents of tmp_path
    blob = store(Cache(Path("cache")))
    (tmp_path / "cache").chmod(0o555)
    with without_rights():
        assert Cache(Path("cache")).find(DIGEST) == blob


def test_looking_for_a_blob_makes_no_folder(cache: Cache) -> None:
    assert cache.find(DIGEST) is None
    assert not cache.root.exists()


def test_damaged_blob_counts_as_missing_until_it_is_replaced(cache: Cache) -> None:
    path = store(cache).path
    path.chmod(0o644)
    path.write_bytes(DATA.swapcase())
    assert cache.find(DIGEST) is None
    store(cache)
    assert path.read_bytes() == DATA


def test_partial_stays_for_the_next_build(cache: Cache) -> None:
    with pytest.raises(KeyboardInterrupt), cache.partial(DIGEST, nobody_waits) as partial:
        partial.write(DATA[:5])
        raise KeyboardInterrupt
    with cache.partial(DIGEST, nobody_waits) as partial:
        assert partial.size == 5
        assert partial.digest == Digest.of(DATA[:5])
        partial.write(DATA[5:])
        assert cache.add(partial).digest == DIGEST


def test_nothing_stays_of_a_partial_without_content(cache: Cache) -> None:
    with cache.partial(DIGEST, nobody_waits) as partial:
        partial.write(DATA)
        partial.restart()
    assert unfinished(cache) == []


def test_nothing_stays_of_a_partial_without_digest(cache: Cache) -> None:
    with pytest.raises(KeyboardInterrupt), cache.partial(None, nobody_waits) as partial:
        partial.write(DATA)
        raise KeyboardInterrupt
    assert unfinished(cache) == []


def test_empty_blob(cache: Cache) -> None:
    empty = Digest.of(b"")
    blob = store(cache, b"", empty)
    assert cache.find(empty) == blob
    assert unfinished(cache) == []


def test_end_of_one_build_leaves_the_partial_of_the_next(cache: Cache) -> None:
    empty = Digest.of(b"")
    with ExitStack() as next_build:
        with cache.partial(empty, nobody_waits) as partial:
            cache.add(partial)
            next_build.enter_context(cache.partial(empty, nobody_waits))
        assert unfinished(cache) == [empty.hex]


@given(st.lists(st.one_of(st.none(), st.binary(max_size=9))))
def test_size_and_digest_are_of_the_file(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes | None]
) -> None:
    with Cache(tmp_path_factory.mktemp("cache")).partial(None, nobody_waits) as partial:
        for piece in pieces:
            if piece is None:
                partial.restart()
            else:
                partial.write(piece)
        content = partial.path.read_bytes()
        assert partial.size == len(content)
        assert partial.digest == Digest.of(content)


def test_only_one_build_writes_a_blob(cache: Cache) -> None:
    first_has_it, second_waits = threading.Event(), threading.Event()

    def first() -> None:
        with cache.partial(DIGEST, nobody_waits) as partial:
            first_has_it.set()
            assert second_waits.wait(10)
            partial.write(DATA)
            cache.add(partial)

    with ThreadPoolExecutor() as pool:
        running = pool.submit(first)
        assert first_has_it.wait(10)
        with cache.partial(DIGEST, second_waits.set) as partial:
            assert partial.size == 0  # not the file that is the blob now
            assert cache.find(DIGEST)
        running.result()
    assert unfinished(cache) == []


def test_many_builds_at_once(cache: Cache) -> None:
    written = []

    def build(_: int) -> None:
        with cache.partial(DIGEST, lambda: None) as partial:
            if not cache.find(DIGEST):
                written.append(partial.size)
                partial.write(DATA)
                cache.add(partial)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(build, range(40)))
    assert written == [0]
    assert unfinished(cache) == []


def test_killed_build_leaves_its_partial_and_no_lock(cache: Cache) -> None:
    script = (
        "import sys, time; from pathlib import Path; from fledge.store.cache import Cache\n"
        "from fledge.tree.digest import Digest\n"
        "with Cache(Path(sys.argv[1])).partial(Digest(sys.argv[2]), lambda: None) as partial:\n"
        "    partial.write(b'the b'); print('ready', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", script, str(cache.root), DIGEST.hex]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as build:
        assert build.stdout
        assert build.stdout.readline() == b"ready\n"
        build.send_signal(signal.SIGKILL)
    with cache.partial(DIGEST, nobody_waits) as partial:
        assert partial.size == 5


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    cache = Cache(tmp_path / "file" / "cache")
    with pytest.raises(HostError, match="file/cache cannot be used: not a directory") as caught:
        store(cache)
    assert "FLEDGE_CACHE_DIR" in caught.value.hint
    with pytest.raises(HostError, match="not a directory"):
        cache.find(DIGEST)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to leave files of root")
@pytest.mark.parametrize("mode", [0o700, 0o755])
@pytest.mark.parametrize("part", [".", "blobs", "partial"])
def test_a_cache_that_root_owns_after_sudo(mode: int, part: str) -> None:
    with tempfile.TemporaryDirectory() as home:
        Path(home).chmod(0o777)
        root = Path(home, "cache")
        with without_rights():
            cache = Cache(root)
            store(cache)
        for path in (root / part, *(root / part).rglob("*")):
            os.chown(path, 0, 0)
        (root / part).chmod(mode)
        with without_rights(), pytest.raises(HostError) as caught:
            store(Cache(root), b"others", None)
    assert f"`sudo chown -R 65534 {root}`" in caught.value.hint
    assert "Set FLEDGE_CACHE_DIR" in caught.value.hint


def test_file_that_may_not_grow(cache: Cache) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with cache.partial(DIGEST, nobody_waits) as partial:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5, limits[1]))
        try:
            with pytest.raises(HostError, match="file too large"):
                partial.write(DATA)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_disk_full(cache: Cache) -> None:
    with cache.partial(DIGEST, nobody_waits) as partial:
        full = os.open("/dev/full", os.O_WRONLY)
        os.dup2(full, partial.file.fileno())
        os.close(full)
        with pytest.raises(FledgeError, match=f"no space left for the cache in {cache.root}") as e:
            partial.write(DATA)
    assert e.value.exit_code == 1
    assert "FLEDGE_CACHE_DIR" in e.value.hint
