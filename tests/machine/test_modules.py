"""Kernel modules: compressed or not, with what they depend on, in an order that loads."""

from __future__ import annotations

import gzip
import lzma
from pathlib import Path

import pytest
import pyzstd

from fledge.errors import CorruptError, FledgeError
from fledge.machine import modules
from tests.support import project, vm


def module(*depends: str, padding: int = 0) -> bytes:
    return b"\x7fELF\0license=GPL\0depends=" + ",".join(depends).encode() + b"\0" + bytes(padding)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    files = {
        "drivers/virtio/virtio.ko": module(),
        "drivers/virtio/virtio_ring.ko.gz": gzip.compress(module("virtio")),
        "drivers/block/virtio_blk.ko.xz": lzma.compress(module("virtio_ring", "virtio")),
        "drivers/net/virtio-net.ko.zst": pyzstd.compress(module("virtio_ring", "failover", "gone")),
        "net/failover.ko": module(),
        "a/loop-a.ko": module("loop_b"),
        "a/loop-b.ko": module("loop_a"),
        "modules.dep": b"not read",
    }
    for name, data in files.items():
        project.write(tmp_path, f"kernel/{name}", data)
    return tmp_path


def test_the_order(folder: Path) -> None:
    found = modules.load_order(folder, ["virtio_net", "virtio_blk", "ext4", "virtio_net"])
    assert [each.name for each in found] == [
        *("virtio", "virtio_ring", "failover", "virtio_net", "virtio_blk"),
    ]
    assert all(each.data.startswith(b"\x7fELF") for each in found)


def test_modules_that_need_each_other(folder: Path) -> None:
    assert len(modules.load_order(folder, ["loop_a"])) == 2


def test_a_damaged_module(folder: Path) -> None:
    project.write(folder, "kernel/bad.ko.xz", lzma.compress(module())[:-20])
    with pytest.raises(CorruptError, match=r"bad\.ko\.xz"):
        modules.load_order(folder, ["bad"])


def test_a_bomb(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modules, "MAX_MODULE_SIZE", 1000)
    project.write(folder, "kernel/bomb.ko.gz", gzip.compress(module(padding=5_000_000)))
    with pytest.raises(FledgeError, match="more than"):
        modules.load_order(folder, ["bomb"])


@pytest.mark.real
def test_those_of_debian() -> None:
    [folder] = vm.kernel().parents[1].glob("lib/modules/*")
    names = [each.name for each in modules.load_order(folder, ["virtio_net", "overlay"])]
    assert names[-1] == "overlay"
    assert names.index("virtio") < names.index("virtio_net")
    assert names.index("failover") < names.index("net_failover") < names.index("virtio_net")
