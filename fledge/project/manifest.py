"""The plugin manifest: what Volant needs to install an artifact and to start its workload.

``NAME.manifest.json`` follows Volant's plugin manifest v1 (docs/6_reference/schemas/
plugin-manifest-v1.json of volantvm/volant, read at v0.6.5), which refuses unknown keys. The engine
reads entrypoint, environment and working folder from the manifest alone, and hands it to the guest
on the kernel's command line.
"""

from __future__ import annotations

import base64
import gzip
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from fledge.errors import MalformedError

TABLE = "manifest"
"""The table of fledge.toml with the settings."""

SCHEMA_VERSION = "1.0"

MAX_COMMAND_LINE = 2047
"""Bytes of the command line that an x86 kernel keeps (COMMAND_LINE_SIZE, without the NUL)."""

NAME_ROOM = 63
"""Bytes to reserve for the name of a VM, which Volant chooses: a host name (hostname(7))."""

MAX_MANIFEST_SIZE = 1 << 20
"""Maximum bytes of a manifest that is read."""

Name = Annotated[str, Meta(min_length=1)]
Milliseconds = Annotated[int, Meta(ge=0)]
Count = Annotated[int, Meta(ge=1)]
LOCATION = r"^(https?://[^\s/]|/)"
"""An http or https URL, or an absolute path. Volant accepts file:// and then fails to start."""
Location = Annotated[str, Meta(pattern=LOCATION)]
Checksum = Annotated[str, Meta(pattern="^sha256:[0-9a-f]{64}$")]
DiskFormat = Literal["raw", "qcow2"]


class _Part(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """A part of a manifest. Keys that have their default are left out."""


class Resources(_Part, frozen=True, kw_only=True):
    """What a VM gets by default."""

    cpu_cores: Count
    memory_mb: Count


class Workload(_Part, frozen=True, kw_only=True):
    """The program that the agent starts, and where it answers."""

    type: Literal["http", "exec", "grpc"]
    """exec and grpc need Volant v0.6.6."""
    base_url: str = ""
    entrypoint: Annotated[list[str], Meta(min_length=1)]
    env: dict[str, str] = {}
    workdir: str = ""

    def __post_init__(self) -> None:
        if self.type == "http" and not self.base_url.startswith(("http://", "https://")):
            raise ValueError('base_url must be a URL, such as "http://127.0.0.1:8080"')
        if any("\0" in each for each in (*self.entrypoint, *self.env, *self.env.values())):
            raise ValueError("entrypoint and env must not have NUL in them, which ends a string")


class RootFilesystem(_Part, frozen=True, kw_only=True):
    """A disk image."""

    url: Location
    checksum: Checksum
    format: DiskFormat = "raw"


class Initramfs(_Part, frozen=True, kw_only=True):
    """An initramfs."""

    url: Location
    checksum: Checksum


class Disk(_Part, frozen=True, kw_only=True):
    """A further disk."""

    name: Name
    source: Name
    checksum: str = ""
    format: DiskFormat = "raw"
    readonly: bool = False
    target: str = ""


class HealthCheck(_Part, frozen=True, kw_only=True):
    """Where the workload says that it is well."""

    endpoint: str
    timeout_ms: Milliseconds


class Action(_Part, frozen=True, kw_only=True):
    """A call that the plugin offers."""

    method: Name
    path: Name
    description: str = ""
    timeout_ms: Milliseconds = 0


class CloudInitDocument(_Part, frozen=True, kw_only=True):
    """A document for cloud-init: its content, or the path of a file."""

    inline: bool = False
    content: str = ""
    path: str = ""

    def __post_init__(self) -> None:
        if self.content and (self.path or not self.inline):
            raise ValueError("content needs inline = true, and excludes path")
        if self.path and self.inline:
            raise ValueError("path needs inline = false")


class CloudInit(_Part, frozen=True, kw_only=True):
    """What cloud-init in the guest gets."""

    datasource: Literal["NoCloud"] = "NoCloud"
    seed_mode: Literal["vfat"] = "vfat"
    user_data: CloudInitDocument | None = None
    meta_data: CloudInitDocument | None = None
    network_config: CloudInitDocument | None = None


class Exposed(_Part, frozen=True, kw_only=True):
    """A port of the guest that the host forwards to. Needs Volant v0.6.6."""

    port: Annotated[int, Meta(ge=1, le=65535)]
    protocol: Literal["tcp", "udp"] = "tcp"
    host_port: Annotated[int, Meta(ge=0, le=65535)] = 0


class Network(_Part, frozen=True, kw_only=True):
    """How a VM is connected."""

    mode: Literal["vsock", "bridged", "dhcp"]
    subnet: str = ""
    gateway: str = ""
    auto_assign: bool = False
    expose: list[Exposed] = []

    def __post_init__(self) -> None:
        if self.mode == "bridged" and self.subnet and not (self.gateway or self.auto_assign):
            raise ValueError("a subnet with bridged needs a gateway or auto_assign = true")


class Devices(_Part, frozen=True, kw_only=True):
    """Devices of the host that a VM gets."""

    pci_passthrough: list[str] = []
    allowlist: list[str] = []


class PluginManifest(_Part, frozen=True, kw_only=True):
    """A whole manifest, as Volant installs it."""

    schema_version: Annotated[str, Meta(description="The version of the manifest's format.")] = ""
    name: Annotated[Name, Meta(description="The plugin. By default the name of the artifact.")]
    version: Annotated[
        Name, Meta(description="By default that of the image: its label, or its tag.")
    ]
    runtime: Annotated[Name, Meta(description="By default the name.")]
    enabled: Annotated[
        bool, Meta(description="Whether Volant makes VMs of it; by default true.")
    ] = False
    image: Annotated[str, Meta(description="The image that it was made from.")] = ""
    image_digest: Annotated[str, Meta(description="The digest of that image's manifest.")] = ""
    openapi: Annotated[str, Meta(description="Where its API is described.")] = ""
    labels: Annotated[dict[str, str], Meta(description="Labels of the plugin.")] = {}
    resources: Annotated[
        Resources, Meta(description="What a VM gets: by default one CPU and 512 MiB.")
    ]
    workload: Annotated[
        Workload,
        Meta(
            description="The program to run. By default entrypoint, env and workdir are those of"
            " the image, and base_url has its first TCP port. exec and grpc need Volant v0.6.6."
        ),
    ]
    rootfs: RootFilesystem | None = None
    initramfs: Initramfs | None = None
    disks: Annotated[list[Disk], Meta(description="Further disks.")] = []
    health_check: Annotated[
        HealthCheck | None, Meta(description="Where the workload says that it is well.")
    ] = None
    actions: Annotated[dict[str, Action], Meta(description="Calls that the plugin offers.")] = {}
    cloud_init: Annotated[
        CloudInit | None, Meta(description="What cloud-init in the guest gets.")
    ] = None
    network: Annotated[
        Network | None,
        Meta(description="How a VM is connected. expose needs Volant v0.6.6."),
    ] = None
    devices: Annotated[Devices | None, Meta(description="Devices of the host that a VM gets.")] = (
        None
    )

    def __post_init__(self) -> None:
        if (self.rootfs is None) == (self.initramfs is None):
            raise ValueError("exactly one of rootfs and initramfs must be there")

    @property
    def place(self) -> RootFilesystem | Initramfs | None:
        """Where the artifact is, and its checksum; None only while this is being made."""
        return self.rootfs or self.initramfs

    @property
    def url(self) -> str:
        """Where the artifact is."""
        return self.place.url if self.place else ""


class Settings(msgspec.Struct, frozen=True):
    """What a project says about its manifest, in [manifest] or manifest.toml."""

    keys: Mapping[str, Any]
    """The keys of the manifest that it sets. Those of a table inside are set one by one."""
    url: str = ""
    """Where Volant finds the artifact; empty: see `fledge.operations.manifest`."""


def settings(table: Mapping[str, Any]) -> Settings:
    """Read the settings in a table that was parsed from TOML.

    Beside the keys of the manifest there are ``url``, and what the original's manifest.toml has: an
    entrypoint as text, its arguments in ``args``, the environment in a table ``env``, and v1 for
    the version of the schema. Raises `MalformedError` for the first value that Volant would refuse;
    keys that are missing are no mistake.
    """
    keys = {key: dict(each) if isinstance(each, Mapping) else each for key, each in table.items()}
    url = keys.pop("url", "")
    if not isinstance(url, str) or (url and not re.match(LOCATION, url)):
        raise MalformedError("url: must be an http or https URL, or an absolute path")
    for key in ("rootfs", "initramfs"):
        if key in keys:
            raise MalformedError(f"{key}: fledge writes this; set url to say where the artifact is")
    if keys.get("schema_version") == "v1":
        del keys["schema_version"]
    workload = keys.setdefault("workload", {})
    if isinstance(workload, dict):
        if isinstance(workload.get("entrypoint"), str):
            workload["entrypoint"] = [workload["entrypoint"]]
        if "args" in workload:
            arguments = workload.pop("args")
            if not isinstance(arguments, list) or "entrypoint" not in workload:
                raise MalformedError("workload.args: must be a list, beside an entrypoint")
            workload["entrypoint"] = [*workload["entrypoint"], *arguments]
        if "env" in keys:
            workload.setdefault("env", keys.pop("env"))
    found = Settings(keys, url)
    complete(found, _EXAMPLE)
    return found


def complete(settings: Settings, known: Mapping[str, Any]) -> PluginManifest:
    """Make a manifest of what the project sets and what is known from elsewhere.

    The project's settings come first. Raises `MalformedError`, which names the key, if something is
    missing or would be refused.
    """
    return parse(_merged(_merged(_DEFAULTS, known), settings.keys))


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Lay one table over another. A table in both is merged, any other value replaced."""
    merged = {**below, **above}
    for key in below.keys() & above.keys():
        if isinstance(below[key], Mapping) and isinstance(above[key], Mapping):
            merged[key] = _merged(below[key], above[key])
    return merged


_DEFAULTS: dict[str, Any] = {
    "schema_version": SCHEMA_VERSION,
    "enabled": True,
    "resources": {"cpu_cores": 1, "memory_mb": 512},
    "workload": {"type": "http"},
}

_EXAMPLE: dict[str, Any] = {
    "name": "example",
    "version": "1",
    "runtime": "example",
    "workload": {"base_url": "http://127.0.0.1:80", "entrypoint": ["/bin/true"]},
    "rootfs": {"url": "/example.img", "checksum": "sha256:" + "0" * 64},
}
"""What a project need not set, to check what it does set."""


def parse(data: object) -> PluginManifest:
    """Validate a manifest that was read from JSON. Raises `MalformedError`, which names the key."""
    try:
        return msgspec.convert(data, PluginManifest)
    except msgspec.ValidationError as error:
        raise MalformedError(explain(error)) from error


def serialize(manifest: PluginManifest) -> bytes:
    """Return the manifest as the text of a file."""
    data = msgspec.to_builtins(manifest)
    return (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode()


def relocated(manifest: PluginManifest, url: str) -> PluginManifest:
    """Return the manifest of the same artifact at another place."""
    places = {"rootfs": manifest.rootfs, "initramfs": manifest.initramfs}
    moved = {key: msgspec.structs.replace(each, url=url) for key, each in places.items() if each}
    return msgspec.structs.replace(manifest, **moved)


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a manifest."""
    return msgspec.json.schema(PluginManifest)


def settings_schema() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the JSON Schema of the settings, and the definitions that it refers to.

    It has the keys of a manifest, of which none is required, and those that `settings` adds.
    """
    _, definitions = msgspec.json.schema_components([PluginManifest], ref_template="#/$defs/{name}")
    found = definitions.pop("PluginManifest")
    for each in (found, definitions["Workload"], definitions["Resources"]):
        del each["required"]
    for key in ("rootfs", "initramfs"):
        del found["properties"][key]
    del definitions["RootFilesystem"], definitions["Initramfs"]
    workload = definitions["Workload"]["properties"]
    workload["entrypoint"] = {"anyOf": [workload["entrypoint"], {"type": "string"}]}
    workload["args"] = {
        "type": "array",
        "items": {"type": "string"},
        "description": "Arguments of an entrypoint that is text.",
    }
    found["properties"] |= {
        "env": {**workload["env"], "description": "The same as workload.env."},
        "url": {
            "type": "string",
            "pattern": LOCATION,
            "description": "Where Volant finds the artifact. By default its path.",
        },
    }
    found["title"] = TABLE
    found["description"] = (
        "The plugin manifest, which Volant needs to install the artifact. It is a file beside it:"
        " NAME.manifest.json. The keys may as well be in a file manifest.toml beside fledge.toml."
    )
    return found, definitions


_AT = re.compile(r"^(?P<problem>.*?)(?: - at `(?P<inside>key in )?\$(?P<path>[^`]*)`)?$", re.DOTALL)


def explain(error: msgspec.ValidationError) -> str:
    """Return a validation error in words, with the key first: ``resources.cpu_cores: …``."""
    found = _AT.match(str(error))
    problem, path = (found["problem"], found["path"] or "") if found else (str(error), "")
    for pattern, words in _WORDS:
        problem = re.sub(pattern, words, problem)
    path = path.replace("[...]", "").lstrip(".")
    return f"{path}: {problem}" if path else problem


_WORDS = (
    (r"^Object missing required field `(.*)`$", r"\1 is missing"),
    (r"^Object contains unknown field `(.*)`$", r"Volant knows no key \1"),
    (r"^Expected `(\w+)( \| null)?`, got `(\w+)`$", r"must be \1, not \3"),
    (r"^Expected `(\w+)` (>=|<=) (.*)$", r"must be \1 \2 \3"),
    (r"^Expected `(str|array)` of length >= 1$", r"must not be empty"),
    (r"^Expected `str` matching regex .*$", r"has the wrong form"),
    (r"^Invalid enum value '(.*)'$", r"Volant knows no \1"),
)


def encode(manifest: PluginManifest) -> str:
    """Return the manifest as the engine puts it on the command line: JSON, gzip, base64url.

    The engine writes some empty members out and adds two labels; so does this, and the length is
    right but for the few bytes in which two implementations of DEFLATE differ.
    """
    data = msgspec.to_builtins(manifest)
    none = {"url": ""}
    labels = {"volant.plugin": manifest.name, "volant.runtime": manifest.runtime}
    data = {
        **{"rootfs": none, "initramfs": none, "health_check": {"endpoint": "", "timeout_ms": 0}},
        **data,
        "labels": {**manifest.labels, **labels},
    }
    compact = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    packed = gzip.compress(compact.encode(), 6, mtime=0)
    return base64.urlsafe_b64encode(packed).decode().rstrip("=")


def decode(encoded: str) -> object:
    """Return the JSON value of a manifest that the engine has encoded.

    Raises `MalformedError` if it is not one.
    """
    try:
        packed = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))
        return json.loads(gzip.decompress(packed))
    except (ValueError, OSError, EOFError) as error:
        raise MalformedError("it is not base64url of gzip of JSON") from error


class Address(msgspec.Struct, frozen=True):
    """The network of a VM, for the parameter ``ip=`` (nfsroot.rst of the kernel)."""

    ip: str
    gateway: str
    netmask: str
    host: str


WIDEST = Address("255.255.255.255", "255.255.255.255", "255.255.255.255", "n" * NAME_ROOM)
"""The address that takes most room on the command line."""


def command_line(manifest: PluginManifest, address: Address | None) -> str:
    """Return the kernel command line that Volant boots the artifact with.

    Without an ``address`` the VM has no network (mode vsock).
    """
    return boot_parameters(manifest, address, disk=bool(manifest.rootfs))


def boot_parameters(manifest: PluginManifest | None, address: Address | None, *, disk: bool) -> str:
    """Return the command line for a disk or an initramfs.

    Without a manifest it is as Volant's would be, but for what the manifest says.
    """
    parameters = ["console=ttyS0", "reboot=k", "panic=1", "quiet", "loglevel=1"]
    if address:
        where = f"{address.ip}::{address.gateway}:{address.netmask}:{address.host}"
        parameters.append(f"ip={where}:eth0:off")
    if manifest:
        parameters += [
            f"volant.runtime={manifest.runtime}",
            f"volant.plugin={manifest.name}",
            f"volant.api_host={address.gateway if address else '127.0.0.1'}",
            "volant.api_port=7777",
        ]
    if disk:
        parameters += ["volant.rootfs_device=vda", "volant.rootfs_fstype=ext4"]
    if manifest:
        parameters.append(f"volant.manifest={encode(manifest)}")
    return " ".join(parameters)


def excess(manifest: PluginManifest) -> int:
    """Return by how many bytes the manifest is too long for the command line; 0 if it fits."""
    return max(0, len(command_line(manifest, WIDEST).encode()) - MAX_COMMAND_LINE)


def plain_name(file_name: str) -> str:
    """Return the name of an artifact without its suffixes: ``nginx`` of ``nginx.img``."""
    return re.sub(r"(?<=.)\.[A-Za-z0-9]+$", "", uncompressed_name(file_name))


def uncompressed_name(file_name: str) -> str:
    """Return a file name without the suffix of a compression: ``x.cpio`` of ``x.cpio.zst``."""
    return re.sub(r"\.(?:gz|zst|lz4|xz)$", "", file_name)


def path_beside(artifact: Path) -> Path:
    """Return the path of an artifact's manifest: ``nginx.manifest.json`` beside ``nginx.img``."""
    return artifact.parent / f"{plain_name(artifact.name)}.manifest.json"


def find(config: Path, given: Path | None) -> Path | None:
    """Return the file with the settings: the one that is given, or manifest.toml if there is one.

    None: the settings are in fledge.toml, or there are none.
    """
    beside = config.with_name("manifest.toml")
    return given or (beside if beside.exists() else None)
