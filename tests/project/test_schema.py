"""Parser, JSON Schema and reference page of fledge.toml, from one declaration."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar

import jsonschema
import msgspec
import pytest
import tomli
import tomli_w
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import Meta

from fledge.formats import FORMATS
from fledge.project import config
from fledge.project.jsonschema import json_schema, json_schema_text
from fledge.project.reference import reference_page
from fledge.project.schema import keys_of, read_record, record_data
from fledge.project.toml import Document, InvalidConfig
from fledge.sources.kinds import SOURCES
from fledge.sources.source import Kind, Presence, Source
from fledge.tree.digest import Digest
from tests.support import project

CHECKOUT = Path(__file__).parents[2]
DIGEST = "0123456789abcdef" * 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all files that the configs of this module name."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("kestrel", "my-init", "payload/webserver", "payload/tool"):
        project.write(folder, name, b"program", executable=True)
    for name in (
        "app.conf",
        "configs/nginx.conf",
        "payload/webserver.yaml",
        "payload/site/x",
        "Dockerfile",
    ):
        project.write(folder, name, b"text")
    return folder


def validator() -> jsonschema.Draft202012Validator:
    return made_validator(len(SOURCES), len(FORMATS))


@cache
def made_validator(sources: int, formats: int) -> jsonschema.Draft202012Validator:
    """Return a validator for lists of that length."""
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def problems(data: dict[str, Any], folder: Path) -> list[str]:
    """Return the problems that the parser finds in a config."""
    try:
        config.parse(data, folder / "fledge.toml")
    except InvalidConfig as error:
        return [problem.message for problem in error.problems]
    return []


# Valid configs, and all mistakes that one can make in them.

INITRAMFS: dict[str, Any] = {"version": "1", "strategy": "initramfs"}
ROOTFS: dict[str, Any] = {
    "version": "1",
    "strategy": "oci_rootfs",
    "source": {"image": "nginx:alpine"},
}
BUSYBOX = {"busybox_url": "https://example.org/busybox", "busybox_sha256": DIGEST}
DOCKERFILE = {
    "context": ".",
    "target": "release",
    "build_args": {"A": "", "B": "x=y"},
    "secrets": {"a-b": {"file": "app.conf"}, "c": {"env": "NAME"}},
    "builder": "podman",
}
RIGHT: list[dict[str, Any]] = [
    INITRAMFS,
    INITRAMFS | {"agent": {}, "init": {}, "source": {}, "mappings": {}},
    INITRAMFS | {"agent": {"version": "v1.2.3", "checksum": DIGEST}},
    INITRAMFS | {"agent": {"source_strategy": "local", "path": "kestrel"}},
    INITRAMFS | {"agent": {"source_strategy": "http", "url": "https://example.org/kestrel"}},
    INITRAMFS | {"source": BUSYBOX},
    INITRAMFS | {"source": {"image": "nginx:alpine", **BUSYBOX}},
    INITRAMFS | {"init": {"path": "my-init"}},
    INITRAMFS | {"init": {"path": "my-init", "none": False}},
    INITRAMFS | {"init": {"none": True}, "source": {"image": "nginx"}},
    INITRAMFS | {"init": {"none": True}, "mappings": {"my-init": "/init"}},
    INITRAMFS | {"mappings": {"app.conf": "/etc/app.conf", "payload/tool": "/usr/bin/"}},
    ROOTFS,
    ROOTFS | {"agent": {}, "filesystem": {}, "mappings": {}},
    ROOTFS | {"filesystem": {"type": "ext4", "builder": "mkfs", "size_buffer_mb": 16}},
    ROOTFS | {"filesystem": {"builder": "native", "preallocate": True}},
    ROOTFS | {"filesystem": {"type": "xfs", "size_buffer_mb": 0}},
    ROOTFS | {"filesystem": {"type": "btrfs", "preallocate": False}},
    ROOTFS | {"filesystem": {"type": "squashfs", "compression": "gzip", "overlay_size": "1G"}},
    ROOTFS | {"filesystem": {"type": "squashfs", "compression_level": 22, "block_size": 4}},
    ROOTFS | {"agent": {"source_strategy": "local", "path": "kestrel"}},
    ROOTFS | {"source": {"image": "docker-archive:image.tar:nginx:alpine"}},
    ROOTFS | {"manifest": {}},
    ROOTFS | {"manifest": {"name": "web", "url": "/web.img", "resources": {"memory_mb": 64}}},
    INITRAMFS | {"manifest": {"workload": {"entrypoint": "/app", "args": ["-v"]}, "env": {}}},
    ROOTFS | {"source": {"dockerfile": "Dockerfile"}},
    ROOTFS | {"source": {"dockerfile": "Dockerfile", **DOCKERFILE}},
    INITRAMFS | {"source": {"dockerfile": "Dockerfile", **BUSYBOX}, "init": {"none": True}},
]

TABLES = ["agent", "init", "source", "filesystem", "mappings"]
KEYS = {
    "": ["version", "strategy", "other", *TABLES],
    "agent": ["source_strategy", "version", "path", "url", "checksum", "other"],
    "init": ["path", "none", "other"],
    "source": ["image", "busybox_url", "busybox_sha256", "other", "dockerfile", *DOCKERFILE],
    "filesystem": [
        *("type", "size_buffer_mb", "builder", "preallocate", "other"),
        *("compression", "compression_level", "block_size", "overlay_size"),
    ],
    "mappings": ["app.conf", "payload/tool"],
}
VALUES: list[Any] = [
    *("", " ", "1", "2", "initramfs", "oci_rootfs", "release", "local", "http", "latest"),
    *("ext4", "xfs", "btrfs", "ext3", "native", "mkfs", "\0", "kestrel", "my-init"),
    *("squashfs", "zstd", "gzip", "1G", "512M", "1 G", "1g", "0K"),
    *("https://example.org", "ftp://example.org", "file:///kestrel", "https://h:65536/", "http://"),
    *(DIGEST, DIGEST.upper(), f"sha256:{DIGEST}", f"{DIGEST}0", f"md5:{DIGEST}"),
    *("nginx", "Nginx", "oci:", "oci:layout", "docker://", "localhost/", f"nginx@sha256:{DIGEST}"),
    *("/etc/x", "etc/x", "/a/../b", "/..", "/..x", "/usr/bin/"),
    *(True, False, 0, 1, -1, 12, 13, 100, 128, 16777216, 16777217, 1.5),
    *([], ["x"], {}, {"path": "kestrel"}),
    *(
        {"A b": "c"},
        {"A": 1},
        {"a": {"env": "B"}},
        {"a": {"env": "-"}},
        {"a": {"file": "b", "env": "C"}},
    ),
]


FILE_PROBLEMS = re.compile(
    "no such file|not a regular file|file name too long|no mapping provides /init|is also mapped to"
    "|no such folder|is not a folder"
)
"""Problems that the parser finds in files, which a schema cannot see."""


def agree(data: dict[str, Any], folder: Path) -> bool:
    """Return whether a config is valid; the parser and the schema must agree."""
    found = problems(data, folder)
    if found and all(FILE_PROBLEMS.search(problem) for problem in found):
        return False
    refused = [error.message for error in validator().iter_errors(data)]
    assert bool(found) == bool(refused), f"{data}\nparser: {found}\nschema: {refused}"
    return not found


@pytest.mark.parametrize("data", RIGHT)
def test_right(folder: Path, data: dict[str, Any]) -> None:
    assert agree(data, folder)


@pytest.mark.slow
@pytest.mark.parametrize("data", RIGHT[1::3])
def test_one_value_changed(folder: Path, data: dict[str, Any]) -> None:
    outcomes = [agree(changed, folder) for changed in mutations(data)]
    assert len(outcomes) > 500
    assert True in outcomes
    assert False in outcomes


def mutations(data: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the config with every key removed or set to every value."""
    for table, keys in KEYS.items():
        for key in keys:
            for value in (None, *VALUES):
                changed = copy.deepcopy(data)
                target = changed.setdefault(table, {}) if table else changed
                if value is None:
                    target.pop(key, None)
                else:
                    target[key] = value
                yield changed


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    st.sampled_from(RIGHT),
    st.lists(
        st.sampled_from([(table, key) for table, keys in KEYS.items() for key in keys]).flatmap(
            lambda where: st.tuples(st.just(where), st.sampled_from(VALUES))
        ),
        max_size=4,
    ),
)
def test_several_values_changed(
    folder: Path, data: dict[str, Any], changes: list[tuple[tuple[str, str], Any]]
) -> None:
    changed = copy.deepcopy(data)
    for (table, key), value in changes:
        target = changed.setdefault(table, {}) if table else changed
        if isinstance(target, dict):
            target[key] = copy.deepcopy(value)
    agree(changed, folder)


URLS = [
    *("http://h", "HTTPS://h:80", "https://[::1]:443/x?y#z", "https://u:p@h/", "https://h:/"),
    *("file:/x", "file://h/x", "https://h:0/", "https://h:65535", "https://h a", "https:///x"),
    *("https://[::1", "https://h\nx", " https://h", "http://h:port/", "http://?x", "http://#"),
]


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        (
            {"image": "a", "dockerfile": "Dockerfile"},
            'dockerfile = "Dockerfile": contradicts image',
        ),
        (
            {},
            '[source] image is missing: write image = "nginx:alpine" or dockerfile = "Dockerfile"',
        ),
        ({"target": "x"}, '[source] dockerfile is missing: write dockerfile = "Dockerfile"'),
        ({"image": "a", "target": "x"}, "requires dockerfile; add that, or remove target"),
        (
            {"dockerfile": "Dockerfile", "secrets": {"a": "s3cret"}},
            'a must be { file = "FILE" } or',
        ),
        (
            {"dockerfile": "Dockerfile", "secrets": {"a/b": {"env": "A"}}},
            '"a/b" is no ID of letters',
        ),
        ({"dockerfile": "Dockerfile", "secrets": {"a": {"file": "x,y"}}}, "no such file"),
        (
            {"dockerfile": "Dockerfile", "build_args": {"A": 1}},
            "must be a table of texts in quotes",
        ),
        ({"dockerfile": "Dockerfile", "builder": "kaniko"}, 'must be "auto" or "buildctl"'),
        ({"dockerfile": "Dockerfile", "context": "x"}, "no such folder"),
        ({"dockerfile": "Dockerfile", "context": "kestrel"}, "kestrel is not a folder"),
    ],
)
def test_an_image_or_a_dockerfile(folder: Path, source: dict[str, Any], problem: str) -> None:
    data = ROOTFS | {"source": source}
    assert problem in "".join(problems(data, folder))
    assert not agree(data, folder)


@pytest.mark.parametrize("url", URLS)
def test_urls(folder: Path, url: str) -> None:
    agree(INITRAMFS | {"agent": {"source_strategy": "http", "url": url}}, folder)


REFERENCES = [
    *("a", "a/b", "a.b/c", "a:5000/b", "localhost/a", "a:t", "a:5000/b:t", "[::1]:5000/a"),
    *("a_b/c", "a__b", "a___b", "a--b", "-a", "a-", "A", "A.b/c", "A/b", "a/", "/a", "a//b", ":t"),
    *(f"a@sha256:{DIGEST}", f"a:t@sha256:{DIGEST}", "a@sha256:1", f"a@sha512:{DIGEST}"),
    *("docker://a", "docker://A", "docker-daemon:a:t", "docker-daemon:", "docker://docker://a"),
    *("oci:x", "oci:x:", "oci:x:y:z", "oci-archive:/x y", "docker-archive:x:a/b:t", "oci:"),
    *("podman:a", "podman:5000/a", "docker://podman:a", "docker-daemon:podman:a", "oci-dir:a"),
    *("oci:x@sha256:" + DIGEST, "oci:@sha256:" + DIGEST, "oci:x@sha256", "oci:x:@0"),
    *("https://a", "containers-storage:a", "a:" + "t" * 128, "a:" + "t" * 129, "a:-t"),
]


@pytest.mark.parametrize("name", REFERENCES)
def test_references(folder: Path, name: str) -> None:
    agree(ROOTFS | {"source": {"image": name}}, folder)


def toml_blocks(page: str) -> list[dict[str, Any]]:
    """Return the examples of a page that are whole files."""
    blocks = re.findall("```toml\n(.*?)```", (CHECKOUT / page).read_text(), re.DOTALL)
    return [tomli.loads(block) for block in blocks if "strategy =" in block and "…" not in block]


@pytest.mark.parametrize(
    "data",
    [
        INITRAMFS | {"init": {"none": True}},
        INITRAMFS | {"init": {"none": True}, "mappings": {}},
        INITRAMFS | {"init": {"none": True}, "source": BUSYBOX},
        INITRAMFS | {"init": {"none": True, "path": "my-init"}},
        INITRAMFS | {"init": {"path": "my-init"}, "agent": {}},
        INITRAMFS | {"init": {"none": True}, "source": {"image": "x"}, "agent": {}},
    ],
)
def test_one_init(folder: Path, data: dict[str, Any]) -> None:
    assert problems(data, folder)
    assert not validator().is_valid(data)


@pytest.mark.parametrize(
    ("tables", "is_right"),
    [
        ({"filesystem": {"read_only": True}}, True),
        ({"filesystem": {"read_only": True}, "verity": {}}, True),
        ({"filesystem": {"type": "ext4", "read_only": True}, "verity": {}}, True),
        ({"filesystem": {"type": "erofs"}, "verity": {"hash_tree": "beside"}}, True),
        ({"verity": {}}, False),
        ({"filesystem": {"read_only": False}, "verity": {}}, False),
        ({"filesystem": {"type": "xfs"}, "verity": {}}, False),
        ({"filesystem": {"read_only": True}, "verity": {"hash_tree": "inside"}}, False),
        ({"filesystem": {"read_only": True, "size_buffer_mb": 1}}, False),
        ({"filesystem": {"read_only": False, "size_buffer_mb": 1}}, True),
        ({"strategy": "initramfs", "verity": {}}, False),
    ],
)
def test_only_what_is_read_only_is_sealed(
    folder: Path, tables: dict[str, Any], is_right: bool
) -> None:
    assert agree(ROOTFS | tables, folder) is is_right


def test_examples(folder: Path) -> None:
    configs = list(CHECKOUT.glob("fixtures/*/fledge.toml"))
    assert len(configs) == 2
    for path in configs:
        config.load(path)
        validator().validate(tomli.loads(path.read_text()))
    pages = ["docs/index.md", *map(str, (CHECKOUT / "docs/guides").glob("*.md"))]
    examples = [data for page in pages for data in toml_blocks(page)]
    assert len(examples) >= 3
    assert all(agree(data, folder) for data in examples)


def test_every_example_in_the_reference(folder: Path) -> None:
    page = (CHECKOUT / "docs/fledge.toml.md").read_text()
    for block in re.findall("```toml\n(.*?)```", page, re.DOTALL):
        data = tomli.loads(block)
        is_disk = {"filesystem", "verity"} & data.keys()
        strategy = data.get("strategy") or ("oci_rootfs" if is_disk else "initramfs")
        whole = {"version": "1", "strategy": strategy, "source": {"image": "nginx"}} | data
        if "verity" in data:
            whole["filesystem"] = {"read_only": True}
        validator().validate(whole)


def test_files_in_the_repository() -> None:
    assert (CHECKOUT / "fledge.schema.json").read_text() == json_schema_text(), "scripts/reference"
    assert (CHECKOUT / "docs/fledge.toml.md").read_text() == reference_page(), "scripts/reference"


def test_the_schema_says_what_a_key_is_for() -> None:
    agent = json_schema()["properties"]["agent"]["properties"]
    assert agent["version"]["default"] == "latest"
    assert "v1.2.3" in agent["version"]["examples"]
    assert 'Only for source_strategy = "release".' in agent["version"]["description"]
    assert agent["source_strategy"]["default"] == "release"


# New entries in the lists are parsed, documented and in the schema, without other changes.


class Motd(Source, frozen=True, tag_field="from"):
    """A message of the day."""

    role: ClassVar[str] = "motd"


class WrittenMotd(Motd, frozen=True, tag="text", kw_only=True):
    """Text written in fledge.toml."""

    text: Annotated[str, Meta(description="The message.", examples=["Hello"])]
    width: Annotated[int, Meta(ge=40, le=80, description="Columns.", examples=[72])] = 80


class CopiedMotd(Motd, frozen=True, tag="file", kw_only=True):
    """A file of the project."""

    text: Annotated[Path, Meta(description="The file.", examples=["app.conf"])]


class Tar(msgspec.Struct, frozen=True, tag="tar", tag_field="type"):
    """A plain tar."""

    name: ClassVar[str] = "tar"
    strategy: ClassVar[str] = "oci_rootfs"
    read_only: ClassVar[bool] = False

    level: Annotated[int, Meta(ge=1, le=9, description="How hard to compress.", examples=[6])] = 3


@pytest.fixture
def more() -> Iterator[None]:
    """Add a kind of source and a format."""
    kind = Kind("motd", (WrittenMotd, CopiedMotd), {"initramfs": Presence.IF_GIVEN})
    SOURCES.append(kind)
    FORMATS.append(Tar)  # type: ignore[arg-type]
    yield
    SOURCES.remove(kind)
    FORMATS.remove(Tar)  # type: ignore[arg-type]


@pytest.mark.usefixtures("more")
@pytest.mark.parametrize(
    ("motd", "problem"),
    [
        ({}, ""),
        ({"text": "Hello", "width": 72}, ""),
        ({"from": "file", "text": "app.conf"}, ""),
        ({"from": "file"}, "[motd] text is missing: write text = "),
        ({"width": 72}, '[motd] text is missing: write text = "Hello"'),
        ({"text": "Hello", "width": 81}, "must be a whole number from 40 to 80"),
        ({"from": "file", "text": "app.conf", "width": 72}, 'requires from = "text"; add that'),
        ({"from": "fil", "text": "app.conf"}, 'did you mean "file"?'),
        ({"text": "Hello", "with": 72}, "did you mean width?"),
    ],
)
def test_an_added_source(folder: Path, motd: dict[str, Any], problem: str) -> None:
    data = INITRAMFS | {"motd": motd}
    assert agree(data, folder) == (not problem)
    assert problem in "".join(problems(data, folder))
    refused = problems(ROOTFS | {"motd": motd}, folder)
    assert '[motd]: only for strategy = "initramfs"; remove the table' in refused
    assert not agree(ROOTFS | {"motd": motd}, folder)


@pytest.mark.usefixtures("more")
def test_an_added_source_is_built(folder: Path) -> None:
    path = folder / "fledge.toml"
    loaded = config.parse(INITRAMFS | {"motd": {"text": "Hello"}}, path)
    assert loaded.source(Motd) == WrittenMotd(text="Hello")
    assert loaded.sources[-1] == WrittenMotd(text="Hello")
    loaded = config.parse(INITRAMFS | {"motd": {"from": "file", "text": "app.conf"}}, path)
    assert loaded.source(Motd) == CopiedMotd(text=folder / "app.conf")
    assert config.parse(INITRAMFS, path).source(Motd) is None


@pytest.mark.usefixtures("more")
def test_an_added_format(folder: Path) -> None:
    data = ROOTFS | {"filesystem": {"type": "tar", "level": 6}}
    assert agree(data, folder)
    made: object = config.parse(data, folder / "fledge.toml").format
    assert made == Tar(6)
    assert not agree(ROOTFS | {"filesystem": {"type": "tar", "builder": "mkfs"}}, folder)
    assert not agree(ROOTFS | {"filesystem": {"level": 6}}, folder)


@pytest.mark.usefixtures("more")
def test_what_is_added_is_documented() -> None:
    page = reference_page()
    assert "## `[motd]`\n\nA message" not in page  # that is what the variants have in common
    assert "### `width`\n\nColumns.\n\n- Type: a whole number from 40 to 80" in page
    assert '- Only for: `from = "text"`' in page
    assert '- `"tar"`: A plain tar.' in page
    properties = json_schema()["properties"]
    assert properties["motd"]["properties"]["width"]["maximum"] == 80
    assert "tar" in properties["filesystem"]["properties"]["type"]["enum"]


def test_a_key_that_needs_another_says_so() -> None:
    keys = json_schema()["properties"]["source"]["properties"]
    for key in ("context", "target", "build_args", "secrets", "builder"):
        assert keys[key]["description"].endswith("Only with dockerfile.")
        assert "- Only with: `dockerfile`" in reference_page().split(f"### `{key}`")[1][:500]
    assert "Only with" not in keys["dockerfile"]["description"] + keys["image"]["description"]


# Tables that fledge writes.


class Pin(msgspec.Struct, frozen=True):
    """A pin for a lock."""

    url: str
    sha256: Digest
    layers: tuple[Digest, ...]
    manifest: Digest | None
    version: str | None = None


PIN: dict[str, object] = {"url": "u", "sha256": DIGEST, "layers": [f"sha256:{DIGEST}"]}


@pytest.mark.parametrize("more", [{}, {"version": "v1"}, {"manifest": f"sha256:{DIGEST}"}])
def test_record(more: dict[str, str]) -> None:
    document = Document(Path("fledge.lock"), {"pin": PIN | more})
    pin = read_record(document.top.table("pin"), Pin)
    document.finish()
    assert pin and pin.sha256 == Digest(DIGEST)
    assert pin.layers == (Digest(DIGEST),)
    assert record_data(pin) == PIN | more


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"url": ""}, '[pin] url = "": must be text'),
        ({"sha256": f"sha256:{DIGEST}"}, "64 hexadecimal digits"),
        ({"manifest": DIGEST}, "must be sha256: and 64 digits"),
        ({"layers": [DIGEST]}, "must be a list"),
        ({"layers": "x"}, "must be a list"),
        ({"layer": []}, "[pin] layer is unknown: did you mean layers?"),
    ],
)
def test_damaged_record(change: dict[str, object], problem: str) -> None:
    text = "\n[pin]\n" + tomli_w.dumps({**PIN, **change})
    document = Document(Path("fledge.lock"), tomli.loads(text), text)
    read_record(document.top.table("pin"), Pin)
    [found] = document.error().problems
    assert problem in found.message
    [key] = change
    line = found.line
    assert line and text.splitlines()[line - 1].startswith(key)


def test_record_beside_other_keys() -> None:
    document = Document(Path("fledge.lock"), {"pin": {"name": "x", **PIN}})
    assert read_record(document.top.table("pin"), Pin, beside=("name",))
    document.finish()


def test_missing_in_a_record_points_to_its_table() -> None:
    text = '# x\n[pin."a.b"]\nurl = "u"\n'
    document = Document(Path("fledge.lock"), tomli.loads(text), text)
    for _, table in document.top.table("pin").tables():
        assert read_record(table, Pin) is None
    assert [problem.shown(document.path) for problem in document.error().problems] == [
        'fledge.lock:2: [pin."a.b"] sha256 is missing: write sha256 = "…", its sha256',
        'fledge.lock:2: [pin."a.b"] layers is missing: write layers = ["sha256:…"]',
    ]


class Unwritable(msgspec.Struct):
    """A type that TOML cannot express."""

    point: complex


def test_a_declaration_without_form_is_refused() -> None:
    with pytest.raises(TypeError, match="point"):
        keys_of(Unwritable)
