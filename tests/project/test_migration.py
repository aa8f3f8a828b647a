"""Configs of the original fledge, and what becomes of each line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tomli
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from fledge.errors import ConfigError
from fledge.project.migration import migrate

PATH = Path("fledge.toml")

ORIGINAL = """\
# Mode 2: Custom Init
version = "1"
strategy = "initramfs"

[init]
path = '/usr/local/bin/my-init.sh'  # ours

[source]
image = ""
Busybox_url = "file:///busybox"
targett = [
  "x", # one

  "y",
]
# before the filesystem

[filesystem]
type = "ext4" # not here

[filesystem.more]
size = 1

[resources]
memory = 1

# files
[mappings]
"./my-init.sh" = "/usr/local/bin/my-init.sh"
"""

CHANGED = """\
# Mode 2: Custom Init
version = "1"
strategy = "initramfs"

[init]
path = "./my-init.sh"  # ours

[source]
# image = ""
Busybox_url = "file:///busybox"
# targett = [
#   "x", # one
# 
#   "y",
# ]
# before the filesystem

# [filesystem]
# type = "ext4" # not here

# [filesystem.more]
# size = 1

# [resources]
# memory = 1

# files
[mappings]
"./my-init.sh" = "/usr/local/bin/my-init.sh"
"""  # noqa: W291

CHANGES = [
    (6, '[init] path = "/usr/local/bin/my-init.sh" becomes "./my-init.sh": it is a file of the'),
    (9, '[source] image = "" becomes a comment: empty text is no value'),
    (11, '[source] targett = ["x", "y"] becomes a comment: the original passes over it; if target'),
    (18, '[filesystem] becomes a comment: it has no meaning for strategy = "initramfs"'),
    (24, "[resources] becomes a comment: the original passes over it; it belongs in manifest.toml"),
]


def test_every_line() -> None:
    new, changes = migrate(ORIGINAL, PATH)
    assert new == CHANGED
    assert [each.line for each in changes] == [line for line, _ in CHANGES]
    for change, (_, message) in zip(changes, CHANGES, strict=True):
        assert change.message.startswith(message)
    assert "mount -t proc proc /proc" in changes[0].message
    assert migrate(new, PATH) == (new, ())


@pytest.mark.parametrize(
    ("table", "removed"),
    [
        ('[agent]\nsource_strategy = "local"\npath = "k"\nversion = "latest"\n', {"version"}),
        ('[agent]\nchecksum = ""\nversion = "latest"\n', {"checksum"}),
        ('[filesystem]\ntype = "ext4"\noverlay_size = "1G"\n', {"overlay_size"}),
        ('[source]\nimage = "nginx"\ntarget = ""\n', {"target"}),
        ('[source]\nimage = "nginx"\nbusybox_url = "x"\n', {"busybox_url"}),
        ('[source]\r\nimage = "nginx"\r\nnope = 1\r\n', {"nope"}),
        ('[manifest]\nname = ""\n', set()),
    ],
)
def test_what_has_no_meaning(table: str, removed: set[str]) -> None:
    text = f'version = "1"\nstrategy = "oci_rootfs"\n{table}'
    new, changes = migrate(text, PATH)
    before, after = _keys(tomli.loads(text)), _keys(tomli.loads(new))
    assert before - after == removed
    assert after <= before
    assert len(changes) == len(removed)


def _keys(data: dict[str, Any]) -> set[str]:
    return {key for table in data.values() if isinstance(table, dict) for key in table}


@pytest.mark.parametrize(
    "source", ['source = { image = "x", nope = 1 }\n', "[source]\nimage.nope = 1\n nope.a = 1\n"]
)
def test_what_cannot_be_changed_by_lines(source: str) -> None:
    text = f'version = "1"\nstrategy = "oci_rootfs"\n{source}'
    if source.startswith("source"):
        with pytest.raises(ConfigError) as caught:
            migrate(text, PATH)
        assert caught.value.details == (
            "fledge.toml:3: [source] nope = 1 becomes a comment: the original passes over it",
        )
    else:
        assert tomli.loads(migrate(text, PATH)[0])["source"] == {"image": {"nope": 1}}


VALUES = st.sampled_from(["", "x", "/init", 'a "b" #\n[c]', 1, True, [], ["x", ""], {"a": "x"}])
NAMES = st.sampled_from(["image", "none", "path", "version", "nope", "x.y", ""])
TABLES = st.sampled_from(["source", "agent", "init", "filesystem", "mappings", "nope"])


@pytest.mark.slow
@given(st.dictionaries(TABLES, st.dictionaries(NAMES, VALUES, max_size=4)))
def test_whatever_is_in_it(tables: dict[str, Any]) -> None:
    """Nothing that stays has changed, and a second time there is nothing to do."""
    data = {"version": "1", "strategy": "initramfs", **tables}
    text = tomli_w.dumps(data)
    try:
        new, changes = migrate(text, PATH)
    except ConfigError:
        return
    assert migrate(new, PATH) == (new, ())
    assert bool(changes) == (new != text)
    kept = tomli.loads(new)
    for name, value in kept.items():
        if isinstance(value, dict) and name != "init":
            assert value.items() <= data[name].items()
