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
from fledge.store.cache import BackgroundVerifier, Cache
from fledge.tree.content import Blob, Span, read_content
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
    assert (blob.path, blob.size) == (cache.root / "blobs/sha256" / DIGEST.hex, len(DATA))
    assert cache.find(DIGEST)
    assert b"".join(read_content(blob)) == DATA
    assert blob.path.stat().st_mode & 0o777 == 0o444
    assert unfinished(cache) == []


def test_a_blob_is_named_by_what_it_holds(cache: Cache) -> None:
    assert store(cache, digest=None).path.name == DIGEST.hex


def test_adding_twice(cache: Cache) -> None:
    assert store(cache).path == store(cache).path


def test_a_cache_of_another_user_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)  # the user nobody cannot enter the parents of tmp_path
    blob = store(Cache(Path("cache")))
    for folder in ("cache", "cache/blobs", "cache/blobs/sha256"):
        Path(folder).chmod(0o555)
    with without_rights():
        found = Cache(Path("cache")).find(DIGEST)
    assert found
    assert found.path == blob.path


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
    store(cache, b"", empty)
    assert cache.find(empty)
    assert unfinished(cache) == []


def test_end_of_one_build_leaves_the_partial_of_the_next(cache: Cache) -> None:
    empty = Digest.of(b"")
    with ExitStack() as next_build:
        with cache.partial(empty, nobody_waits) as partial:
            cache.add(partial)
            next_build.enter_context(cache.partial(empty, nobody_waits))
        assert unfinished(cache) == [empty.hex]


@given(st.lists(st.one_of(st.none(), st.binary(max_size=9))))
@pytest.mark.slow
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


def test_a_close_that_fails_is_told_as_what_it_is(cache: Cache) -> None:
    failing = pytest.raises(HostError, match=f"the cache in {cache.root} cannot be used: bad file")
    with failing, cache.partial(DIGEST, nobody_waits) as partial:
        partial.write(DATA)
        cache.add(partial)
        os.close(partial.file.fileno())


@pytest.mark.parametrize("umask", [0, 0o002, 0o022, 0o077])
def test_nobody_else_enters_its_folders(cache: Cache, umask: int) -> None:
    before = os.umask(umask)
    try:
        store(cache)
    finally:
        os.umask(before)
    for folder in ("", "partial", "blobs", "blobs/sha256"):
        assert (cache.root / folder).stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    "planted", ["in-use", f"partial/{DIGEST.hex}", f"blobs/sha256/{DIGEST.hex}"]
)
def test_a_planted_link_is_not_followed(cache: Cache, tmp_path: Path, planted: str) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    link = cache.root / planted
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path / "secret")
    assert cache.find(DIGEST) is None
    if planted.startswith("partial"):
        with pytest.raises(HostError, match="too many levels of symbolic links"):
            store(cache)
    else:
        assert store(cache).size == len(DATA)
        assert cache.find(DIGEST)
    assert (tmp_path / "secret").read_bytes() == b"secret"


@pytest.mark.parametrize("planted", ["partial", "blobs", "blobs/sha256"])
def test_a_planted_folder_is_not_entered(cache: Cache, tmp_path: Path, planted: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    link = cache.root / planted
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(HostError, match="not a directory"):
        store(cache)
    assert os.listdir(tmp_path / "elsewhere") == []


def test_a_fifo_in_place_of_a_blob_is_no_blob(cache: Cache) -> None:
    cache.path(DIGEST).parent.mkdir(parents=True)
    os.mkfifo(cache.path(DIGEST))
    assert cache.find(DIGEST) is None
    store(cache)
    assert cache.find(DIGEST)


@pytest.mark.parametrize("how", ["added", "found", "claimed"])
def test_what_was_verified_is_what_is_read(cache: Cache, tmp_path: Path, how: str) -> None:
    blob: Blob | None = store(cache)
    if how == "found":
        blob = cache.find(DIGEST)
    elif how == "claimed":
        verifier = BackgroundVerifier(cache)
        blob = verifier.claim(DIGEST)
    assert blob
    (tmp_path / "other").write_bytes(DATA.swapcase())
    (tmp_path / "other").replace(blob.path)
    if how == "claimed":
        assert verifier.passes()
        verifier.close()
    part = Span(blob.path, 4, 5, None, DIGEST, blob.opened)
    assert b"".join(read_content(part)) == DATA[4:9]


def test_what_a_killed_build_left_without_a_digest_goes(cache: Cache) -> None:
    abandoned = cache.root / "partial" / "unpinned-0123456789abcdef"
    abandoned.parent.mkdir(parents=True)
    abandoned.write_bytes(b"half")
    with cache.partial(None, nobody_waits) as first, cache.partial(None, nobody_waits) as second:
        assert unfinished(cache) == sorted([first.path.name, second.path.name])


@pytest.mark.parametrize("missing", ["fcntl", "flock"])
@pytest.mark.slow
def test_a_kernel_without_such_locks(cache: Cache, missing: str) -> None:
    """The kernel refuses the calls, in a process of their own."""
    store(cache)
    script = f"""
import sys
from pathlib import Path
from tests.support.refusal import refuse
from fledge.errors import HostError
from fledge.store.cache import Cache
from fledge.store.housekeeping import prune
from fledge.tree.digest import Digest
refuse({missing!r})
cache = Cache(Path(sys.argv[1]))
assert cache.find(Digest({DIGEST.hex!r}))
try:
    print(cache.store(b"other").size, prune(cache, None, 0).left.files)
except HostError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(cache.root)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    if missing == "fcntl":
        assert done.stdout == "5 0\n"
    else:
        assert "its filesystem has no locks for files" in done.stdout
        assert "FLEDGE_CACHE_DIR" in done.stdout
