"""The plugin manifest: what Volant needs to install an artifact and to start its workload.

``ARTIFACT.manifest.json`` follows Volant's plugin manifest v1 (docs/6_reference/schemas/
plugin-manifest-v1.json of volantvm/volant, read at v0.6.5), which refuses unknown keys. The engine
reads entrypoint, environment and working folder from the manifest alone, and hands it to the guest
on the kernel's command line.
"""

from __future__ import annotations

import base64
import gzip
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from fledge.errors import MalformedError
from fledge.project import mistakes
from fledge.project.values import literal
from fledge.sources import ownfiles
from fledge.tree.digest import Digest

TABLE = "manifest"
"""The table of fledge.toml with the settings."""

SCHEMA_VERSION = "1.0"

MAX_COMMAND_LINE = 2047
"""Bytes of the command line that an x86 kernel keeps (COMMAND_LINE_SIZE, without the NUL)."""

NAME_ROOM = 63
"""Bytes to reserve for the name of a VM, which Volant chooses: a host name (hostname(7))."""

MAX_MANIFEST_SIZE = 1 << 20
"""Maximum bytes of a manifest that is read."""

MAX_CPUS = 4096
"""CPUs of a VM: the most that KVM can be configured for (KVM_MAX_NR_VCPUS, x86)."""

MAX_MEMORY_MB = 1 << 32
"""MiB of memory of a VM: physical addresses of amd64 and arm64 have at most 52 bits."""

MAX_MILLISECONDS = ((1 << 63) - 1) // 1_000_000
"""Volant counts a timeout in nanoseconds, in 64 bits with a sign (Go's time.Duration)."""

# Where a pattern ends, (?!\n) refuses the newline before which $ matches in Python.
NAME = r"^[A-Za-z0-9][A-Za-z0-9._:@+~-]*$(?!\n)"
"""A word of the kernel's command line, and of the path of a URL of Volant's API."""
VERSION = r"^(?!\s*$)[^\x00-\x1f\x7f-\x9f]+$(?!\n)"
"""Text on one line. Volant removes spaces around it, and refuses it if nothing is left."""
ENDPOINT = r"\S"
"""The path of a URL. Without one, Volant does not look at the workload."""
LOCATION = r"^(https?://[^\s/?#]|/)"
"""An http or https URL, or an absolute path. Volant accepts file:// and then fails to start."""
CHECKSUM = r"^((sha256:)?[0-9A-Fa-f]{64})?$(?!\n)"
"""A SHA-256 as Volant compares it, or nothing."""

Text = Annotated[str, Meta(min_length=1)]
Name = Annotated[str, Meta(pattern=NAME)]
Location = Annotated[str, Meta(pattern=LOCATION)]
Checksum = Annotated[str, Meta(pattern=CHECKSUM)]
Milliseconds = Annotated[int, Meta(ge=0, le=MAX_MILLISECONDS)]
DiskFormat = Literal["raw", "qcow2"]


def is_http_url(text: str) -> bool:
    """Return whether a text is an http or https URL with a host, and no space in it."""
    try:
        parts = urlsplit(text)
        is_complete = bool(parts.hostname) and parts.port != 0
    except ValueError:  # brackets or a port that no host has
        return False
    return is_complete and parts.scheme in ("http", "https") and not re.search(r"\s", text)


class _Part(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """A part of a manifest. Keys that have their default are left out."""


class Resources(_Part, frozen=True, kw_only=True):
    """What a VM gets by default."""

    cpu_cores: Annotated[int, Meta(ge=1, le=MAX_CPUS)]
    memory_mb: Annotated[int, Meta(ge=1, le=MAX_MEMORY_MB)]


class Workload(_Part, frozen=True, kw_only=True):
    """The program that the agent starts, and where it answers."""

    type: Literal["http", "exec", "grpc"]
    """exec and grpc need Volant v0.6.6."""
    base_url: str = ""
    entrypoint: Annotated[list[str], Meta(min_length=1)]
    env: dict[str, str] = {}
    workdir: str = ""

    def __post_init__(self) -> None:
        if self.type == "http" and not is_http_url(self.base_url):
            raise ValueError('base_url must be a URL, such as "http://127.0.0.1:8080"')
        if any("\0" in each for each in (*self.entrypoint, *self.env, *self.env.values())):
            raise ValueError("entrypoint and env must not have NUL in them, which ends a string")


class RootFilesystem(_Part, frozen=True, kw_only=True):
    """A disk image."""

    url: Location
    checksum: Checksum = ""
    format: DiskFormat = "raw"


class Initramfs(_Part, frozen=True, kw_only=True):
    """An initramfs."""

    url: Location
    checksum: Checksum = ""


class Disk(_Part, frozen=True, kw_only=True):
    """A further disk."""

    name: Text
    source: Text
    checksum: str = ""
    format: DiskFormat = "raw"
    readonly: bool = False
    target: str = ""


class HealthCheck(_Part, frozen=True, kw_only=True):
    """Where the workload says that it is well."""

    endpoint: Annotated[str, Meta(pattern=ENDPOINT)]
    timeout_ms: Milliseconds


class Action(_Part, frozen=True, kw_only=True):
    """A call that the plugin offers."""

    method: Text
    path: Text
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
    name: Annotated[
        Name,
        Meta(
            description="The plugin. By default the name of the artifact, without suffixes. Volant"
            " puts it on the kernel's command line and into URLs."
        ),
    ]
    version: Annotated[
        str,
        Meta(pattern=VERSION, description="By default that of the image: its label, or its tag."),
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

    @property
    def digest(self) -> Digest | None:
        """The digest of the artifact; None if the manifest has none."""
        checksum = self.place.checksum if self.place else ""
        return Digest(checksum.removeprefix("sha256:").lower()) if checksum else None


class WrongKey(MalformedError):
    """A key of a manifest that is missing, or that Volant would refuse."""

    def __init__(self, keys: Sequence[str], message: str) -> None:
        """``keys`` is the path to the key; empty: the whole manifest. ``message`` begins with it,
        or with that of its table.
        """
        super().__init__(message)
        self.keys = tuple(keys)


class WrongKeys(MalformedError):
    """All wrong keys of the settings of a project."""

    def __init__(self, found: Sequence[WrongKey]) -> None:
        """``found`` has at least one."""
        super().__init__("; ".join(map(str, found)))
        self.found = tuple(found)


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
    the version of the schema. Raises `WrongKeys` with all that Volant would refuse; keys that are
    missing are no mistake.
    """
    keys = {key: dict(each) if isinstance(each, Mapping) else each for key, each in table.items()}
    found, url = [], keys.pop("url", "")
    if not isinstance(url, str) or (url and not re.match(LOCATION, url)):
        found.append(WrongKey(["url"], f"url: {FORMS[LOCATION]}"))
    for key in ("rootfs", "initramfs"):
        if keys.pop(key, None) is not None:
            words = f"{key}: fledge writes this; set url to say where the artifact is"
            found.append(WrongKey([key], words))
    if keys.get("schema_version") == "v1":
        del keys["schema_version"]
    workload = keys.setdefault("workload", {})
    environment: tuple[str, ...] = ("workload", "env")
    if isinstance(workload, dict):
        found += _join_arguments(workload)
        if "env" in keys and "env" not in workload:
            environment, workload["env"] = ("env",), keys.pop("env")
        found += _wrong_names(workload.get("env"), environment)
    data = _merged(_merged(_DEFAULTS, EXAMPLE), keys)
    for each in mistakes.find(PluginManifest, data, _WORDS):
        if each.keys[:2] == ("workload", "env") != environment:
            found.append(WrongKey(each.keys[1:], each.message.removeprefix("workload.")))
        else:
            found.append(WrongKey(each.keys, each.message))
    if found:
        raise WrongKeys(found)
    return Settings(keys, str(url))


def _join_arguments(workload: dict[str, Any]) -> Iterator[WrongKey]:
    """Make one list of an entrypoint that is text, and of its arguments."""
    if isinstance(workload.get("entrypoint"), str):
        workload["entrypoint"] = [workload["entrypoint"]]
    if "args" not in workload:
        return
    arguments, entrypoint = workload.pop("args"), workload.get("entrypoint")
    if isinstance(arguments, list) and isinstance(entrypoint, list):
        workload["entrypoint"] = entrypoint + arguments
    else:
        words = "workload.args: must be a list, beside an entrypoint"
        yield WrongKey(["workload", "args"], words)


def _wrong_names(environment: object, keys: tuple[str, ...]) -> Iterator[WrongKey]:
    """Yield the names that no variable can have. ``keys`` is the path to the environment."""
    for name in environment if isinstance(environment, Mapping) else ():
        if not is_variable(name):
            words = f"{'.'.join(keys)}: {literal(name)} names no variable: a name"
            yield WrongKey((*keys, name), f"{words} is not empty, and has no = in it")


def is_variable(name: str) -> bool:
    """Return whether a variable of the environment can have a name. Volant leaves out others."""
    return bool(name.strip()) and "=" not in name


def complete(settings: Settings, known: Mapping[str, Any]) -> PluginManifest:
    """Make a manifest of what the project sets and what is known from elsewhere.

    The project's settings come first. Raises `WrongKey` if one is missing or would be refused.
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

EXAMPLE: dict[str, Any] = {
    "name": "example",
    "version": "1",
    "runtime": "example",
    "workload": {"base_url": "http://127.0.0.1:80", "entrypoint": ["/bin/true"]},
    "rootfs": {"url": "/example.img", "checksum": "sha256:" + "0" * 64},
}
"""Stands for what a project need not set, to check what it does set."""


def parse(data: object) -> PluginManifest:
    """Validate a manifest that was read from JSON. Raises `WrongKey`."""
    for each in mistakes.find(PluginManifest, data, _WORDS):
        raise WrongKey(each.keys, each.message)
    return msgspec.convert(data, PluginManifest)


def read(text: bytes) -> PluginManifest:
    """Read a manifest that anyone may have written, and take what Volant takes.

    Volant needs no ``runtime`` and passes over ``$schema``, which is for editors, and over rootfs,
    initramfs and health check if they are empty, as it writes them itself. Raises `MalformedError`.
    """
    try:
        data = msgspec.json.decode(text)
    except (ValueError, RecursionError) as error:
        raise MalformedError(f"it is not JSON: {error}") from error
    if isinstance(data, dict):
        data.pop("$schema", None)
        if "name" in data:
            data["runtime"] = data.get("runtime") or data["name"]
        for key, member in (("rootfs", "url"), ("initramfs", "url"), ("health_check", "endpoint")):
            if isinstance(data.get(key), dict) and not data[key].get(member):
                del data[key]
    return parse(data)


def serialize(manifest: PluginManifest) -> bytes:
    """Return the manifest as the text of a file."""
    data = msgspec.to_builtins(manifest)
    return (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode()


def relocated(manifest: PluginManifest, url: str) -> PluginManifest:
    """Return the manifest of the same artifact at another place."""
    places = {"rootfs": manifest.rootfs, "initramfs": manifest.initramfs}
    moved = {key: msgspec.structs.replace(each, url=url) for key, each in places.items() if each}
    return msgspec.structs.replace(manifest, **moved)


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
    workload["env"]["propertyNames"] = {"pattern": r"^[^=]*[^=\s][^=]*$"}
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
        "The plugin manifest, which Volant needs to install the artifact. It is a file beside it,"
        " ARTIFACT.manifest.json. The keys may as well be in a file manifest.toml beside"
        " fledge.toml."
    )
    return found, definitions


FORMS = {
    NAME: "must begin with a letter or digit and have only letters of ASCII, digits and . _ : @ + ~"
    " - in it, as it is a word of the kernel's command line and a part of URLs",
    VERSION: "must be text on one line",
    ENDPOINT: "must be the path of a URL, such as /health",
    LOCATION: "must be an http or https URL, or an absolute path",
    CHECKSUM: "must be a SHA-256: sha256: and 64 hexadecimal digits",
}
"""What each pattern demands, in words."""

_WORDS = mistakes.Words(
    owner="Volant",
    patterns=FORMS,
    limits={
        MAX_CPUS: "as many as KVM gives a VM",
        MAX_MEMORY_MB: "all that addresses of 52 bits reach",
    },
    more_keys=("env", "url"),
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
    """Return the path of an artifact's manifest: ``nginx.img.manifest.json`` beside ``nginx.img``.

    It has the whole name, so that no two artifacts of a folder share one.
    """
    return artifact.parent / f"{artifact.name}{ownfiles.MANIFEST_SUFFIX}"


def find(config: Path, given: Path | None) -> Path | None:
    """Return the file with the settings: the one that is given, or manifest.toml if there is one.

    None: the settings are in fledge.toml, or there are none.
    """
    beside = config.with_name("manifest.toml")
    return given or (beside if beside.exists() else None)
