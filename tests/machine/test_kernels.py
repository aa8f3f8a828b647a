"""The known kernels, and Debian's configurations."""

from __future__ import annotations

import lzma
import re
from pathlib import Path

import pytest

from fledge.ext4.kernel import _OPTIONS
from fledge.formats import FORMATS
from fledge.machine import kernels
from fledge.machine.check import check
from fledge.machine.kconfig import KernelConfig, State
from fledge.tree.kernel import Requirement
from tests.support import vm


@pytest.mark.parametrize("name", kernels.PROFILES)
def test_a_profile_decides_every_option_that_is_asked_for(name: str) -> None:
    text = kernels.PROFILES[name].read_text()
    decided = re.findall(r"^(?:# )?CONFIG_(\w+)(?:=| is not set)", text, re.MULTILINE)
    asked = {
        option for kind in FORMATS for each in kind().requirements() for option in each.options
    }
    assert asked | {each for options in _OPTIONS.values() for each in options} <= set(decided)
    assert len(decided) == len(set(decided))
    found = kernels.find(name, Path("/nowhere"))
    assert found.architecture == "amd64"
    assert re.search(r"as of 20\d\d-\d\d$", found.source)


@pytest.mark.parametrize(
    ("name", "booted"),
    [
        ("volant", {"initramfs", "ext4"}),
        ("firecracker", {"initramfs", "ext4", "xfs", "squashfs"}),
        ("libkrun", {"ext4", "xfs", "btrfs", "erofs"}),
        ("kata", {"initramfs", "ext4", "xfs", "erofs"}),
        ("debian", {"initramfs"}),
    ],
)
def test_what_the_known_kernels_boot(name: str, booted: set[str]) -> None:
    kernel = kernels.find(name, Path())
    assert {kind.name for kind in FORMATS if check(kind().requirements(), kernel).boots} == booted


def test_states_and_advice() -> None:
    kernel = KernelConfig("", (5, 10), None, {"A": State.BUILT_IN, "B": State.MODULE})
    cases = [
        (Requirement("a", ("A",)), State.BUILT_IN, "", False),
        (Requirement("a", ("C", "B", "A")), State.BUILT_IN, "", False),
        (Requirement("b", ("C", "B")), State.MODULE, "from an initramfs, or .* CONFIG_B=y", True),
        (Requirement("b", ("B",), essential=False), State.MODULE, "in the guest", False),
        (
            Requirement("c", ("C", "D"), instead="do this"),
            State.MISSING,
            "CONFIG_C=y or CONFIG_D=y, or do this",
            True,
        ),
        (Requirement("c", ("C",), essential=False), State.MISSING, "CONFIG_C=y", False),
        (Requirement("old", since=(5, 10)), State.BUILT_IN, "", False),
        (Requirement("new", since=(5, 15)), State.MISSING, "Linux 5.15 or later", True),
        (Requirement("new", ("A",), since=(6, 1)), State.MISSING, "Linux 6.1 or later", True),
        (Requirement("old", ("C",), since=(5, 2)), State.MISSING, "CONFIG_C=y", True),
        (Requirement("never"), State.MISSING, "without it", True),
    ]
    found = check((each for each, *_ in cases), kernel).findings
    for (_, state, advice, prevents), finding in zip(cases, found, strict=True):
        assert finding.state is state
        assert re.search(advice, finding.advice)
        assert finding.prevents_boot is prevents
        assert bool(finding.advice) is (state is not State.BUILT_IN)


@pytest.mark.real
def test_six_configurations_of_debian() -> None:
    """They are read as the lines that grep finds in them."""
    paths = vm.configs()
    assert len(paths) >= 6
    for path in paths:
        found = kernels.find(path.name, path.parent)
        text = lzma.decompress(path.read_bytes()).decode()
        assert found.version == (6, 1)
        assert f".{found.architecture}_" in path.name
        assert len(found.options) == len(re.findall(r"^CONFIG_\w+=[ym]$", text, re.MULTILINE))
        for option, state in (("EXT4_FS", found.state("EXT4_FS")), ("RD_ZSTD", State.BUILT_IN)):
            value = {State.BUILT_IN: "y", State.MODULE: "m"}[state]
            assert f"\nCONFIG_{option}={value}\n" in text


@pytest.mark.real
def test_the_profile_of_debian_is_true() -> None:
    path = next(each for each in map(vm.kernel_of, ("cloud", "other")) if "amd64" in each.name)
    real = kernels.find(str(path), Path())
    profile = kernels.find("debian", Path())
    text = kernels.PROFILES["debian"].read_text()
    for option in re.findall(r"CONFIG_(\w+)", text):
        assert profile.state(option) is real.state(option), option
