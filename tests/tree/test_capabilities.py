"""Capabilities as getcap(8) prints them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from fledge.tree.capabilities import CAPABILITY, capabilities


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("01000002 00040000 00000000 00000000 00000000", "cap_net_bind_service=ep"),
        ("00000002 00000000 00200000 00000000 00000000", "cap_net_raw=i"),
        ("00000002 00000000 00000000 00010000 00000000", "cap_checkpoint_restore=p"),
        ("00000002 00000000 00000000 00000080 00000000", "cap_63=p"),
        ("01000001 00200000 00000000", "cap_net_raw=ep"),
        ("01000003 00200000 00000000 00000000 00000000 e8030000", "cap_net_raw=ep"),
        ("00000002 00000000 00000000 00000000 00000000", "="),
        ("01000002 00200000", "malformed: 0100000200200000"),
        ("01000009 00200000 00000000 00000000 00000000", "malformed: 0100000900200000"),
        ("", "malformed: "),
    ],
)
def test_values(value: str, text: str) -> None:
    found = capabilities({CAPABILITY: bytes.fromhex(value)})
    assert found.startswith(text) if text.startswith("malformed") else found == text


def test_none() -> None:
    assert capabilities({b"user.a": b"b"}) == ""


@pytest.mark.real
def test_the_same_as_getcap(tmp_path: Path) -> None:
    program = tmp_path / "program"
    for text in ("cap_net_raw=ep", "cap_chown,cap_bpf=ip", "cap_kill,cap_setuid=eip"):
        program.write_bytes(b"")
        subprocess.run(["setcap", text, program], check=True)
        shown = subprocess.run(["getcap", program], check=True, capture_output=True, text=True)
        value = os.getxattr(program, CAPABILITY)
        assert shown.stdout.split(maxsplit=1)[1].strip() == capabilities({CAPABILITY: value})
