"""Disks that are sealed by dm-verity: built, recorded, inspected, verified, pushed and pulled."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from msgspec import structs

from fledge.cli import views
from fledge.errors import ConfigError, CorruptError
from fledge.formats import open_artifact
from fledge.operations import inspect, manifest, seal, verify
from fledge.operations.boot import Machine, boot_command
from fledge.operations.build import Artifact, build
from fledge.operations.check import check, check_target
from fledge.operations.diff import diff
from fledge.operations.kernel import check_kernel
from fledge.operations.pull import pull
from fledge.operations.push import push
from fledge.operations.seal import Seal
from fledge.project import config, provenance
from fledge.project.toml import InvalidConfig
from fledge.tree import File
from fledge.tree.block_digests import BLOCK_SIZE
from fledge.tree.content import Span, hash_file
from tests.support import golden, guests, project, registry
from tests.support.disks import READ_ONLY
from tests.support.oci_registry import OciRegistry
from tests.support.project import Fledge

ENTRYPOINT = 'entrypoint = ["/usr/bin/webserver"]\n'
VERITY = "read_only = true\n[verity]\n"


def make(folder: Path, tables: str = VERITY) -> Path:
    toml = project.make_rootfs(folder)
    toml.write_text(toml.read_text().replace("size_buffer_mb = 8", tables))
    return toml


def sealed(folder: Path, tables: str = VERITY) -> Artifact:
    return build(make(folder, tables), folder / "x.img", platform="linux/amd64")


def root_hash(artifact: Artifact) -> str:
    assert artifact.root_hash
    return artifact.root_hash.hex


def find(path: Path) -> Seal:
    found = seal.find(path)
    assert found
    return found


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        [byte] = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def test_golden(tmp_path: Path) -> None:
    artifact = sealed(tmp_path)
    assert artifact.digest.hex == golden.SEALED_ROOTFS
    assert artifact.digest == hash_file(artifact.path).digest
    assert artifact.size == artifact.path.stat().st_size
    assert root_hash(artifact) == golden.SEALED_ROOT_HASH


def test_the_tree_of_a_config_that_was_made_in_python_stays(tmp_path: Path) -> None:
    sealed(tmp_path, 'read_only = true\n[verity]\nhash_tree = "beside"\n')
    made = structs.replace(config.load(tmp_path / "fledge.toml"), data={})
    for _ in range(2):
        artifact = build(made, tmp_path / "made.img", platform="linux/amd64")
        assert artifact.beside.hash_tree == tmp_path / "made.img.verity"


@pytest.mark.real
@pytest.mark.parametrize("name", READ_ONLY)
def test_veritysetup_accepts_it(name: str, tmp_path: Path) -> None:
    """Whatever the format; the sizes of some are no multiples of a block."""
    tables = f'type = "{name}"\n{READ_ONLY[name]}[verity]\n'
    appended, beside = sealed(tmp_path, tables), tmp_path / "beside"
    summary = inspect.inspect(appended.path)
    assert summary.names["file"] == 9
    assert summary.seal
    assert summary.seal.is_intact
    assert verify.verify(appended.path, tmp_path / "fledge.toml").equal
    found = find(appended.path)
    offset = f"--hash-offset={found.tree.offset}"
    command: list[str | Path] = ["veritysetup", "verify"]
    command += [appended.path, appended.path, root_hash(appended), offset]
    subprocess.run(command, check=True)
    beside.mkdir()
    other = sealed(beside, f'{tables}hash_tree = "beside"\n')
    tree = seal.path_beside(other.path)
    command = ["veritysetup", "verify", other.path, tree, root_hash(other)]
    subprocess.run(command, check=True)
    assert root_hash(other) == root_hash(appended)  # the data is the same
    assert tree.read_bytes() == appended.path.read_bytes()[found.tree.offset :]


@pytest.mark.slow
def test_it_is_recorded(tmp_path: Path) -> None:
    artifact = sealed(tmp_path, VERITY + guests.MANIFEST + ENTRYPOINT)
    record = provenance.load(artifact.path)
    assert record.root_hash == artifact.root_hash
    statement = json.loads(provenance.path_beside(artifact.path).read_text())
    assert statement["subject"][0]["digest"] == {
        "sha256": artifact.digest.hex,
        "dmVerityRootHash": root_hash(artifact),
    }
    assert artifact.manifest
    assert artifact.manifest.labels == {"fledge.dm-verity.roothash": root_hash(artifact)}
    again, _ = manifest.manifest(artifact.path, tmp_path / "fledge.toml")
    assert again == artifact.manifest


def test_inspect_shows_it(tmp_path: Path) -> None:
    artifact = sealed(tmp_path)
    summary = inspect.inspect(artifact.path)
    assert summary.seal
    assert summary.seal.is_intact
    with open_artifact(artifact.path) as opened:
        facts = inspect.describe(opened, summary)["verity"]
    found = find(artifact.path)
    size, start = found.tree.data_size, found.tree.data_blocks + 1
    assert facts["root_hash"] == root_hash(artifact)
    assert facts["data_size"] == size == found.tree.offset
    assert facts["kernel_parameters"] == (
        f'dm-mod.create="sealed,,,ro,0 {size // 512} verity 1 /dev/vda /dev/vda 4096 4096'
        f' {size // 4096} {start} sha256 {root_hash(artifact)} {facts["salt"]}"'
        " root=/dev/dm-0 ro"
    )
    assert facts["systemd_parameters"] == (
        f"roothash={root_hash(artifact)} systemd.verity_root_data=/dev/vda"
        f" systemd.verity_root_hash=/dev/vda systemd.verity_root_options=hash-offset={size}"
    )


@pytest.mark.slow
def test_another_root_hash_is_recorded(tmp_path: Path) -> None:
    """Whoever changes the data and the tree cannot change what was recorded."""
    artifact = sealed(tmp_path)
    path = provenance.path_beside(artifact.path)
    path.write_text(path.read_text().replace(root_hash(artifact), "0" * 64))
    found = inspect.inspect(artifact.path).seal
    assert found
    assert not found.is_intact
    result = verify.verify(artifact.path, tmp_path / "fledge.toml")
    [claim] = result.false_claims
    assert "dmVerityRootHash: recorded 0000" in claim


@pytest.mark.slow
@pytest.mark.parametrize("place", ["appended", "beside"])
def test_a_flipped_byte_is_found(place: str, tmp_path: Path) -> None:
    artifact = sealed(tmp_path, f'{VERITY}hash_tree = "{place}"\n')
    assert seal.verify_seal(artifact.path, root_hash(artifact)).is_intact
    with open_artifact(artifact.path) as opened:
        node = opened.tree.get(b"/usr/bin/webserver")
        assert isinstance(node.content, Span)  # type: ignore[union-attr]
        offset = node.content.offset  # type: ignore[union-attr]
    flip(artifact.path, offset + 1)
    [damage] = seal.verify_seal(artifact.path, root_hash(artifact)).damaged
    assert (damage.offset, damage.size, damage.level) == (offset, BLOCK_SIZE, None)
    assert damage.path == b"/usr/bin/webserver"


def test_a_disk_of_others(tmp_path: Path) -> None:
    """There is no provenance, and only the person knows the root hash."""
    artifact = sealed(tmp_path)
    other = shutil.copy(artifact.path, tmp_path / "other.img")
    assert seal.verify_seal(other, root_hash(artifact).upper()).is_intact
    found = seal.verify_seal(other, "0" * 64)
    assert not found.is_intact
    assert not found.damaged
    with pytest.raises(ConfigError, match="root hash 'x' is not"):
        seal.verify_seal(other, "x")


def test_a_disk_that_is_not_sealed(tmp_path: Path) -> None:
    artifact = sealed(tmp_path, "read_only = true\n")
    assert artifact.root_hash is None
    assert inspect.inspect(artifact.path).seal is None
    with pytest.raises(ConfigError, match="is not sealed"):
        seal.verify_seal(artifact.path, "0" * 64)
    with pytest.raises(ConfigError, match="no such file"):
        seal.verify_seal(tmp_path / "nothing", "0" * 64)


def test_a_hostile_superblock(tmp_path: Path) -> None:
    artifact = sealed(tmp_path)
    tree = find(artifact.path).tree
    flip(artifact.path, tree.offset + 0x48)  # data_blocks
    with pytest.raises(CorruptError, match=r"the hash tree of .*x\.img: its superblock says"):
        seal.find(artifact.path)
    checked = inspect.inspect(artifact.path).seal
    assert checked == seal.verify_seal(artifact.path, root_hash(artifact))
    assert not checked.is_intact
    assert "its superblock says" in checked.problem


@pytest.mark.slow
def test_a_tree_beside_that_is_not_for_it(tmp_path: Path) -> None:
    artifact = sealed(tmp_path, f'{VERITY}hash_tree = "beside"\n')
    os.truncate(artifact.path, artifact.size + BLOCK_SIZE)
    with pytest.raises(CorruptError, match=f"it is for {artifact.size} bytes"):
        seal.find(artifact.path)
    tree = seal.path_beside(artifact.path)
    os.truncate(artifact.path, artifact.size)
    os.truncate(tree, tree.stat().st_size - 1)
    with pytest.raises(CorruptError, match="it is cut off"):
        seal.find(artifact.path)
    tree.write_bytes(b"nothing")
    with pytest.raises(CorruptError, match="cut off"):
        seal.find(artifact.path)


@pytest.mark.parametrize(
    ("tables", "problem"),
    [
        (
            "[verity]\n",
            'set read_only = true in [filesystem], choose type = "erofs" or "squashfs" in',
        ),
        ('type = "xfs"\n[verity]\n', 'written; choose type = "erofs" or "squashfs" in'),
        ("read_only = true\n[verity]\nhash_tree = 'inside'\n", "hash_tree"),
        ("read_only = true\nsize_buffer_mb = 4\n", "contradicts size_buffer_mb"),
        ("read_only = true\npreallocate = true\n", "contradicts preallocate"),
    ],
)
def test_configs_that_do_not_fit(tables: str, problem: str, tmp_path: Path) -> None:
    toml = make(tmp_path, tables)
    with pytest.raises(InvalidConfig, match=r"fledge\.toml") as caught:
        build(toml, tmp_path / "x.img")
    assert problem in str(caught.value)


def test_an_initramfs_cannot_be_sealed(tmp_path: Path) -> None:
    toml = project.make(tmp_path, project.LOCAL_AGENT, "[verity]\n")
    with pytest.raises(InvalidConfig, match="only for strategy"):
        build(toml, tmp_path / "x.cpio.gz")


@pytest.mark.slow
def test_the_tree_of_an_older_build_goes(tmp_path: Path) -> None:
    artifact = sealed(tmp_path, f'{VERITY}hash_tree = "beside"\n')
    assert seal.path_beside(artifact.path).exists()
    sealed(tmp_path, "read_only = true\n")
    assert not seal.path_beside(artifact.path).exists()
    assert seal.find(artifact.path) is None


def test_what_a_kernel_needs(tmp_path: Path) -> None:
    artifact = sealed(tmp_path)
    for found in (
        check_kernel("debian", artifact.path),
        check_target(tmp_path / "fledge.toml", "debian"),
    ):
        assert found
        states = {each.requirement.purpose: each.state.value for each in found.findings}
        assert states["device mapper"] == states["dm-verity"] == "module"
        assert states["dm-verity without an initramfs"] == "missing"
        assert states["SHA-256 for dm-verity"] == "built in"


@pytest.mark.slow
@pytest.mark.parametrize("place", ["appended", "beside"])
def test_through_a_registry(place: str, tmp_path: Path, served: OciRegistry) -> None:
    artifact = sealed(tmp_path, f'{VERITY}hash_tree = "{place}"\n')
    reference = f"{served.host}/sealed:{place}"
    push(artifact.path, reference)
    folder = tmp_path / "pulled"
    folder.mkdir()
    pull(reference, folder)
    found = seal.verify_seal(folder / "x.img", root_hash(artifact))
    assert found.is_intact
    assert found.seal
    assert found.seal.is_appended is (place == "appended")
    if place == "beside":
        tree = seal.path_beside(artifact.path)
        assert seal.path_beside(folder / "x.img").read_bytes() == tree.read_bytes()


@pytest.mark.real
def test_from_the_build_cache(tmp_path: Path, fledge: Fledge) -> None:
    """The tree beside is made again, and is not in the registry."""
    make(tmp_path, f'{VERITY}hash_tree = "beside"\n')
    with registry.serve(tmp_path / "storage") as host:
        table = f'[cache]\nregistry = "{host}/cache"\ntrusted = true\n'
        (tmp_path / "fledge.toml").open("a").write(table)
        assert fledge("lock").code == 0
        assert fledge("build", "--locked", "--cache-to", f"{host}/cache").code == 0
        built = {path.name: path.read_bytes() for path in tmp_path.glob("layout.img*")}
        assert "layout.img.verity" in built
        for name in built:
            (tmp_path / name).unlink()
        done = fledge("build", "--locked", "--json")
        assert "built before" in done.err
        assert json.loads(done.out)["root_hash"] == provenance_root(tmp_path)
        assert {path.name: path.read_bytes() for path in tmp_path.glob("layout.img*")} == built
    (tmp_path / "layout.img.verity").unlink()
    done = fledge("build", "--changed")
    assert "1 built" in done.err


def provenance_root(folder: Path) -> str:
    found = provenance.load(folder / "layout.img").root_hash
    assert found
    return found.hex


@pytest.mark.slow
def test_the_command_line(tmp_path: Path, fledge: Fledge) -> None:
    make(tmp_path)
    done = fledge("build", "-v", "-o", "x.img")
    assert "    dm-mod.create=" in done.err
    assert f"    roothash={golden.SEALED_ROOT_HASH} systemd.verity_root_data=" in done.err
    assert f"  root hash {golden.SEALED_ROOT_HASH}\n" in done.err
    check = ("verify", "x.img", "--root-hash", golden.SEALED_ROOT_HASH)
    done = fledge(*check)
    assert (done.code, done.out) == (0, "intact: all of x.img is what the root hash says\n")
    shown = fledge("inspect", "x.img").out
    assert "all data is intact" in shown
    assert f"root hash    {golden.SEALED_ROOT_HASH}\n" in shown
    with open_artifact(tmp_path / "x.img") as opened:
        [offset] = [
            node.content.offset
            for _, node in opened.tree.walk()
            if isinstance(node, File) and isinstance(node.content, Span)
            if node.content.size == 9  # the mapped configuration
        ]
    flip(tmp_path / "x.img", offset)
    done = fledge(*check)
    assert (done.code, done.out) == (
        1,
        "damaged: x.img\n"
        f"  block {offset // 4096}, 4096 bytes at {offset}, in /etc/webserver/config.yaml\n",
    )
    assert "  sealed       116.0 KiB by dm-verity, hash tree appended: damaged\n" in (
        fledge("inspect", "x.img").out
    )
    done = fledge("verify", "x.img", "--root-hash", "0" * 64)
    assert (done.code, done.out) == (
        1,
        f"damaged: x.img\n  its root hash is {golden.SEALED_ROOT_HASH}, and should be {'0' * 64}\n",
    )


def test_all_that_contradicts_read_only_is_told(tmp_path: Path) -> None:
    tables = "read_only = true\nsize_buffer_mb = 4\nbytes_per_inode = 8192\nbuilder = 'mkfs'\n"
    with pytest.raises(InvalidConfig) as caught:
        build(make(tmp_path, tables), tmp_path / "x.img")
    for name in ("size_buffer_mb", "bytes_per_inode", "builder"):
        assert f"contradicts {name}" in str(caught.value)
    make(tmp_path, "read_only = true\npreallocate = false\nbuilder = 'native'\n")
    check(tmp_path / "fledge.toml")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "problem"),
    [(-1, "should have"), (-BLOCK_SIZE, "should have"), (1, "should have"), (-1 << 16, "cut off")],
)
def test_a_disk_of_another_size(size: int, problem: str, tmp_path: Path, fledge: Fledge) -> None:
    """It is told apart from a disk that is not sealed, and what is wrong is its size."""
    artifact = sealed(tmp_path)
    os.truncate(artifact.path, artifact.size + size)
    done = fledge("verify", "x.img", "--root-hash", root_hash(artifact))
    assert (done.code, done.out.splitlines()[0]) == (1, "damaged: x.img")
    assert f" {artifact.size + size} bytes" in done.out
    assert problem in done.out
    with pytest.raises(CorruptError):
        boot_command(artifact.path, machine=Machine(kernel=tmp_path / "none"))


@pytest.mark.slow
def test_a_lost_tree(tmp_path: Path, fledge: Fledge) -> None:
    artifact = sealed(tmp_path, f'{VERITY}hash_tree = "beside"\n')
    seal.path_beside(artifact.path).unlink()
    for changed in (False, True):  # its provenance counts for other bytes as well
        if changed:
            flip(artifact.path, 3000)
        with pytest.raises(CorruptError, match=r"its hash tree .*x\.img\.verity does not exist"):
            seal.find(artifact.path)
        assert seal.is_sealed(artifact.path)
        found = check_kernel("volant", artifact.path)
        assert "dm-verity" in {each.requirement.purpose for each in found.findings}
        done = fledge("inspect", "x.img")
        assert done.code == 1
        assert "  sealed       by dm-verity: damaged: x.img is sealed, as its prov" in done.out
        shown = json.loads(fledge("inspect", "--json", "x.img").out)["verity"]
        assert shown["expected"] == root_hash(artifact)
        assert not shown["intact"]


@pytest.mark.slow
def test_a_damaged_tree_beside(tmp_path: Path, fledge: Fledge) -> None:
    """The disk itself is as it was built: verify and build --changed look at its tree, too."""
    artifact = sealed(tmp_path, f'{VERITY}hash_tree = "beside"\n')
    tree = seal.path_beside(artifact.path)
    whole = tree.read_bytes()
    for position in (0x10, BLOCK_SIZE + 5, None):  # the UUID, and a digest
        if position is None:
            tree.unlink()
        else:
            flip(tree, position)
        result = verify.verify(artifact.path, tmp_path / "fledge.toml")
        assert not result.equal
        [claim] = result.false_claims
        assert str(tree) in claim
        done = fledge("build", "--changed", "-o", "x.img", "--platform", "linux/amd64")
        assert "1 built" in done.err
        assert tree.read_bytes() == whole
    done = fledge("build", "--changed", "-o", "x.img", "--platform", "linux/amd64", "--json")
    assert json.loads(done.out)["status"] == "up to date"
    assert json.loads(done.out)["hash_tree"] == "x.img.verity"


@pytest.mark.slow
def test_the_command_lines_of_a_damaged_tree(tmp_path: Path, fledge: Fledge) -> None:
    """They have the root hash that is recorded, or are not shown."""
    artifact = sealed(tmp_path)
    flip(artifact.path, find(artifact.path).tree.position(1))
    done = fledge("inspect", "x.img")
    assert done.code == 1
    assert f"sha256 {root_hash(artifact)} " in done.out
    assert f"\nroothash={root_hash(artifact)} " in done.out
    shown = json.loads(fledge("inspect", "--json", "x.img").out)["verity"]
    assert shown["expected"] == root_hash(artifact) != shown["root_hash"]
    provenance.path_beside(artifact.path).unlink()
    done = fledge("inspect", "x.img")
    assert done.code == 1
    assert "roothash=" not in done.out
    shown = json.loads(fledge("inspect", "--json", "x.img").out)["verity"]
    assert shown["expected"] is shown["kernel_parameters"] is None


@pytest.mark.slow
def test_diff_tells_of_the_seal(tmp_path: Path) -> None:
    plain, beside = tmp_path / "plain.img", tmp_path / "beside.img"
    toml = make(tmp_path, "read_only = true\n")
    build(toml, plain, platform="linux/amd64")
    build(make(tmp_path, f'{VERITY}hash_tree = "beside"\n'), beside, platform="linux/amd64")
    artifact = sealed(tmp_path)
    hash_ = root_hash(artifact)
    found = diff(plain, artifact.path).container
    assert (found["root hash"], found["hash tree"]) == ((None, hash_), (None, "appended"))
    assert diff(beside, artifact.path).container["hash tree"] == ("beside", "appended")
    same = diff(plain, beside)
    assert same.same_bytes
    assert same.container == {"root hash": (None, hash_), "hash tree": (None, "beside")}
    assert f"  root hash: none → {hash_}" in list(views.difference_lines(same))


@pytest.mark.slow
def test_the_tree_itself_is_no_disk(tmp_path: Path) -> None:
    artifact = sealed(tmp_path, f'{VERITY}hash_tree = "beside"\n')
    tree = seal.path_beside(artifact.path)
    message = r"x\.img\.verity is the hash tree by which dm-verity seals .*x\.img, and"
    for function in (inspect.inspect, lambda path: diff(path, path)):
        with pytest.raises(CorruptError, match=message):
            function(tree)
    with pytest.raises(CorruptError, match=message):
        push(tree, "localhost:1/x:y")


@pytest.mark.slow
def test_root_hash_and_signatures(tmp_path: Path, fledge: Fledge) -> None:
    """What is asked for beside --root-hash is checked, too, or refused."""
    make(tmp_path, f'{VERITY}hash_tree = "beside"\ncertificate = "key.crt"\n')
    (tmp_path / "key.crt").write_text("not read without a key")
    assert "key.crt is not used: without --sign-with" in fledge("build", "-o", "x.img").err
    make(tmp_path)
    assert fledge("keygen", "-o", "key").code == 0
    done = fledge("build", "-o", "x.img", "--sign-with", "key.key", "--json")
    answer = json.loads(done.out)
    assert answer["signatures"] == "x.img.provenance.dsse.json"
    assert answer["hash_tree"] is answer["root_signature"] is None
    assert "  signatures x.img.provenance.dsse.json\n" in done.err
    check = ("verify", "x.img", "--root-hash", answer["root_hash"])
    done = fledge(*check, "--key", "key.pub", "--no-rebuild")
    assert done.code == 0
    assert "signed: x.img" in done.out
    assert "intact: all of x.img" in done.out
    assert fledge("keygen", "-o", "other").code == 0
    assert fledge(*check, "--key", "other.pub").code == 4
    assert fledge(*check, "--threshold", "2").code == 2
    assert fledge(*check, "-c", "fledge.toml").code == 2
    assert fledge(*check, "--no-rebuild", "--offline").code == 0
