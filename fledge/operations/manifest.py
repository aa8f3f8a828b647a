"""Fills in the plugin manifest from the image, the tree and the artifact."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec

from fledge.errors import ConfigError, CorruptError, MalformedError
from fledge.formats import open_artifact
from fledge.host.files import PathLike
from fledge.net.json_document import MAX_DOCUMENT_SIZE
from fledge.oci import runtime
from fledge.oci.manifest import parse_platform
from fledge.oci.runtime import Runtime
from fledge.operations import boots, seal
from fledge.operations.arguments import ConfigLike, as_config
from fledge.operations.kernel import target
from fledge.project import manifest as plugin
from fledge.project import provenance
from fledge.project.config import Config
from fledge.project.manifest import PluginManifest, Settings, Workload, WrongKey
from fledge.report import counted, human_size
from fledge.sources import paths
from fledge.sources.init import MADE_MOUNT_POINTS, MOUNT_POINTS, has_built_in, mounted
from fledge.sources.inputs import Input
from fledge.sources.kinds import IMAGE_ROLES
from fledge.sources.source import Assembly
from fledge.tree import Directory, File, Tree, programs
from fledge.tree.content import content_size, hash_file, read_range
from fledge.tree.digest import Digest
from fledge.tree.names import printable
from fledge.tree.programs import Context

VERSION_LABEL = "org.opencontainers.image.version"
"""The label of an image with the version of the software in it (OCI image-spec, annotations.md)."""

ROOT_HASH_LABEL = "fledge.dm-verity.roothash"
"""The label of a plugin with the root hash of its sealed disk."""

AGENT_PATH = "/usr/local/bin:/usr/bin:/bin"
"""The PATH of a workload on a disk whose environment sets none. In an initramfs, it is that of the
built-in init."""

PAGE = 4096
"""Bytes in a page of memory. A file takes whole pages."""

UNKNOWN = Digest("0" * 64)
"""Stands for the digest of an artifact that is not written yet."""


def artifact_url(settings: Settings, base_url: str | None, artifact: Path) -> str:
    """Return where an artifact will be: below ``base_url``, at the URL of the project, or here.

    Raises `ConfigError` if ``base_url`` is no http or https URL, or the path here is not UTF-8.
    """
    if base_url is not None:
        if re.search(r"[\s?#]", base_url):
            raise ConfigError(
                f"{base_url} has a query, a fragment or a space in it, and the name of the artifact"
                " is to follow it",
                "Name the folder of the artifact alone, such as https://plugins.example.org; write"
                " %20 for a space, %3F for ? and %23 for #.",
            )
        if not plugin.is_http_url(base_url):
            raise ConfigError(
                f"{base_url} is not an http or https URL, as Volant needs it for an artifact",
                "Name the folder of the artifact, such as https://plugins.example.org.",
            )
        return f"{base_url.rstrip('/')}/{quote(os.fsencode(artifact.name))}"
    if settings.url:
        return settings.url
    try:
        return os.fsencode(artifact.absolute()).decode()
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{artifact} is not UTF-8, so a plugin manifest cannot name it",
            "Choose another path, or set [manifest] url.",
        ) from error


def manifest(
    artifact: PathLike,
    config: ConfigLike = "fledge.toml",
    *,
    manifest: PathLike | None = None,
    base_url: str | None = None,
) -> tuple[PluginManifest, list[str]]:
    """Make the manifest of an artifact that exists, and notes as in `fill`.

    What it runs is read from the artifact; its image and architecture from its provenance, if
    there is one for these bytes. Raises `ConfigError` as `fill` and if the config has nothing to
    say about a manifest, `FledgeError` if the artifact cannot be read.
    """
    artifact, config = Path(artifact), as_config(config, manifest)
    if config.manifest is None:
        raise no_settings(config)
    with open_artifact(artifact) as opened:
        if opened.format.manifest_key != config.format.manifest_key:
            raise ConfigError(
                f"{artifact} is of type {opened.format.name}, but {config.path} builds"
                f" {config.format.name}",
                "Name the fledge.toml of the artifact with -c FILE.",
            )
        digest = hash_file(artifact).digest
        record = provenance.load(artifact) if provenance.path_beside(artifact).exists() else None
        if record and record.digest != digest:
            record = None  # of an older artifact with this name
        inputs = record.inputs if record else ()
        architecture = parse_platform(record.platform).architecture if record else ""
        url = artifact_url(config.manifest, base_url, artifact)
        filled, notes = fill(config, opened.tree, architecture, inputs, artifact, url)
    found = seal.find(artifact)
    return sealed(filled, digest, found.root_hash if found else None), notes


def image_input(inputs: Iterable[Input]) -> Input | None:
    """Return the input that is the image; None if the artifact is made without one."""
    return next((each for each in inputs if each.role in IMAGE_ROLES), None)


def no_settings(config: Config) -> ConfigError:
    """Make the error for a config that has no manifest."""
    return ConfigError(
        f"{config.path} says nothing about a plugin manifest",
        "Add a table [manifest], or a file manifest.toml beside it.",
    )


def draft(config: Config, assembly: Assembly, artifact: Path, url: str) -> PluginManifest:
    """Make the manifest of an artifact that is not written yet: only its digest is missing.

    What the image asks for and Volant does not do is a note. Raises as `fill`.
    """
    filled, notes = fill(
        config, assembly.tree, assembly.architecture, assembly.inputs, artifact, url
    )
    for note in notes:
        assembly.session.reporter.note(note)
    return filled


def _check_workload(
    config: Config, tree: Tree, architecture: str, workload: Workload
) -> tuple[Workload, list[str]]:
    """Return a workload with the path of its program, and notes.

    Raises `ConfigError` if the agent could not start it: it would halt the machine.
    """
    is_agent_first = not config.format.in_memory or has_built_in(tree)
    after_mounts = mounted(tree)
    # An init of the project may mount the same, or nothing.
    seen = after_mounts if is_agent_first else tree
    context = workload_context(workload, architecture, in_memory=config.format.in_memory)
    program = _find_program(tree, seen, workload)
    command = [program, *workload.entrypoint[1:]]
    notes = []
    kernel = target(config)
    for why in boots.problems(kernel, seen, command, context):
        if not why.is_certain:
            notes.append(f"the entrypoint may not run: {why.text}")
            continue
        hint = why.advice
        if seen is not tree and not any(
            each.is_certain for each in boots.problems(kernel, tree, command, context)
        ):
            hint = f"Move what it needs elsewhere: the agent mounts over {_LISTED_MOUNT_POINTS}."
        raise ConfigError(f"the entrypoint of the plugin manifest cannot run: {why.text}", hint)
    folder = posixpath.join("/", workload.workdir)
    places = filter(None, (each.locate(folder.encode()) for each in (seen, after_mounts)))
    if not any(isinstance(node, Directory) for _, node in places):
        where = "in which the entrypoint of the plugin manifest is to start"
        if over := _hidden_by(tree, folder):
            raise ConfigError(
                f"the folder {printable(folder.encode())}, {where}, is hidden: the agent mounts a"
                f" filesystem over {over}",
                "Move it elsewhere, or set [manifest.workload] workdir.",
            )
        raise ConfigError(
            f"the artifact has no folder {printable(folder.encode())}, {where}",
            "Add it with [mappings], or set [manifest.workload] workdir.",
        )
    return msgspec.structs.replace(workload, entrypoint=command), notes


def workload_context(workload: Workload, architecture: str, *, in_memory: bool) -> Context:
    """Return what the agent starts a workload with, in an initramfs or on a disk."""
    path = programs.DEFAULT_PATH if in_memory else AGENT_PATH
    return Context(architecture, {"PATH": path} | workload.env, workload.workdir)


_LISTED_MOUNT_POINTS = ", ".join(map(printable, MOUNT_POINTS))


def _hidden_by(tree: Tree, path: str) -> str | None:
    """Return the mount point that hides what a tree has at ``path``; None if none does."""
    if tree.locate(path.encode()) is None:
        return None
    points = (*MOUNT_POINTS, *MADE_MOUNT_POINTS)
    hiding = (each for each in points if mounted(tree, [each]).locate(path.encode()) is None)
    return next(map(printable, hiding), None)


def check_settings(config: Config, artifact: Path, url: str) -> None:
    """Raise `ConfigError` if the manifest of an artifact will be refused, whatever is in its tree.

    What the tree and the image may say is taken to be right.
    """
    known: dict[str, Any] = {"workload": plugin.EXAMPLE["workload"]}
    if config.image:
        known["version"] = plugin.EXAMPLE["version"]
    _check_length(_complete(config, known, artifact, url))


def fill(
    config: Config,
    tree: Tree,
    architecture: str,
    inputs: Iterable[Input],
    artifact: Path,
    url: str,
) -> tuple[PluginManifest, list[str]]:
    """Make a manifest without a digest, and notes about what Volant does not do for the image.

    ``architecture`` (OCI name; empty: any) and ``inputs`` are those of the tree; the config of the
    image is in the tree. Raises `ConfigError` if something is missing, if Volant would refuse the
    manifest, if it is too long for the kernel's command line, or if the workload could not start;
    `CorruptError` if the config of the image is malformed.
    """
    settings, found = config.manifest or Settings({}), image_runtime(tree)
    known: dict[str, Any] = {"workload": workload_keys(found) | _answers_at(settings)}
    if image := image_input(inputs):
        known |= _origin(image, found)
    filled = _complete(config, known, artifact, url)
    workload, doubts = _check_workload(config, tree, architecture, filled.workload)
    filled = msgspec.structs.replace(filled, workload=workload)
    if config.verity:
        filled = _labelled(filled, UNKNOWN)
    _check_length(filled)
    notes = [*doubts, *_notes(found, filled)]
    if config.format.in_memory:
        notes += _memory_notes(tree, filled.resources.memory_mb)
    return filled, notes


def _complete(config: Config, known: Mapping[str, Any], artifact: Path, url: str) -> PluginManifest:
    """Make a manifest without a digest of the settings, of the artifact and of what is known.

    Raises `ConfigError`.
    """
    settings = config.manifest or Settings({})
    name = settings.keys.get("name") or plugin.plain_name(artifact.name)
    if "name" not in settings.keys and not re.search(plugin.NAME, name):
        raise ConfigError(
            f"the plugin cannot be named {printable(name)} after its artifact: a name"
            f" {plugin.FORMS[plugin.NAME]}",
            "Set [manifest] name, or choose another file with -o FILE.",
        )
    place = {config.format.manifest_key: {"url": url, "checksum": str(UNKNOWN)}}
    try:
        return plugin.complete(settings, {"name": name, "runtime": name, **place, **known})
    except WrongKey as error:
        raise ConfigError(
            f"the plugin manifest is not complete: {error}",
            f"Set {'.'.join(error.keys)} in [manifest] of fledge.toml.",
        ) from error


def _check_length(filled: PluginManifest) -> None:
    """Raise `ConfigError` if a manifest is too long for the kernel's command line."""
    if excess := plugin.excess(filled):
        raise ConfigError(
            f"the plugin manifest is {counted(excess, 'byte')} too long: Volant puts it on the"
            f" kernel's command line, which ends at {plugin.MAX_COMMAND_LINE} bytes",
            "Shorten [manifest.workload] env or entrypoint, for instance with a script.",
        )


def sealed(drafted: PluginManifest, digest: Digest, root_hash: Digest | None) -> PluginManifest:
    """Return the manifest of the artifact with that digest and root hash of dm-verity."""
    places = {"rootfs": drafted.rootfs, "initramfs": drafted.initramfs}
    sealed_places = {
        kind: msgspec.structs.replace(place, checksum=str(digest))
        for kind, place in places.items()
        if place
    }
    return msgspec.structs.replace(_labelled(drafted, root_hash), **sealed_places)


def _labelled(drafted: PluginManifest, root_hash: Digest | None) -> PluginManifest:
    """Return a manifest whose label says the root hash; None: it has no such label."""
    labels = {name: text for name, text in drafted.labels.items() if name != ROOT_HASH_LABEL}
    if root_hash:
        labels[ROOT_HASH_LABEL] = root_hash.hex
    return msgspec.structs.replace(drafted, labels=labels)


def image_runtime(tree: Tree) -> Runtime:
    """Return what the image in a tree says about running it; nothing if there is no image.

    Raises `CorruptError` if its config is malformed.
    """
    node = tree.get(paths.IMAGE_CONFIG, follow=True)
    if not isinstance(node, File):
        return Runtime()
    if content_size(node.content) > MAX_DOCUMENT_SIZE:
        raise CorruptError(f"the config of the image has more than {MAX_DOCUMENT_SIZE >> 20} MiB")
    try:
        return runtime.parse(read_range(node.content, 0, MAX_DOCUMENT_SIZE))
    except MalformedError as error:
        raise CorruptError(f"the config of the image is malformed: {error}") from error


def _origin(image: Input, found: Runtime) -> dict[str, str]:
    """The keys that say which image it is, and its version if the image has one."""
    name = image.uri.removeprefix("docker://")
    keys = {"image": name}
    if "manifest" in image.facts:
        keys["image_digest"] = image.facts["manifest"]
    if version := image_version(name, found):
        keys["version"] = version
    return keys


def image_version(name: str, found: Runtime) -> str:
    """Return the version in the label of an image, or else its tag; empty if that is latest."""
    tag = re.search(r":([^:/@]+)(?:@|$)", name)
    return found.labels.get(VERSION_LABEL) or (tag[1] if tag and tag[1] != "latest" else "")


def workload_keys(found: Runtime) -> dict[str, Any]:
    """Return the keys of the workload that an image sets."""
    variables = found.environment.items()
    keys: dict[str, Any] = {
        "env": {name: value for name, value in variables if plugin.is_variable(name)}
    }
    if found.arguments:
        keys["entrypoint"] = list(found.arguments)
    if found.folder:
        keys["workdir"] = found.folder
    if ports := list(filter(None, map(_tcp_port, found.ports))):
        keys["base_url"] = f"http://127.0.0.1:{ports[0]}"
    return keys


def _tcp_port(exposed: str) -> int | None:
    """Return the number in ``80/tcp`` or ``80``; None if it is not one TCP port."""
    number = exposed.removesuffix("/tcp")
    return int(number) if re.fullmatch("[1-9][0-9]{0,4}", number) and int(number) < 65536 else None


def _answers_at(settings: Settings) -> dict[str, str]:
    """The URL of the first TCP port that the project exposes; empty if it exposes none."""
    network = settings.keys.get("network", {})
    ports = [each for each in network.get("expose", ()) if each.get("protocol", "tcp") == "tcp"]
    return {"base_url": f"http://127.0.0.1:{ports[0]['port']}"} if ports else {}


def _find_program(tree: Tree, seen: Tree, workload: Workload) -> str:
    """Return the path of the entrypoint. The agent looks in a PATH of its own, so it is absolute.

    ``seen`` is what the agent sees of the tree when it starts the program. Raises `ConfigError` if
    that has no such program.
    """
    name, search = workload.entrypoint[0], workload.env.get("PATH", programs.DEFAULT_PATH)
    program = programs.find(seen, name, search, workload.workdir)
    if program is not None:
        return program
    hidden = programs.find(tree, name, search, workload.workdir)
    over = _hidden_by(tree, hidden) if hidden else None
    if hidden and over:
        raise ConfigError(
            f"the entrypoint {printable(hidden.encode())} is hidden when the agent starts it: the"
            f" agent mounts a filesystem over {over}",
            "Put the program elsewhere, and set [manifest.workload] entrypoint.",
        )
    where = f"below {workload.workdir or '/'}" if "/" in name else f"in PATH={search}"
    raise ConfigError(
        f"the artifact has no program {name} {where}, which is the entrypoint",
        "Set [manifest.workload] entrypoint, or add the program with [mappings].",
    )


def _notes(found: Runtime, filled: PluginManifest) -> Iterator[str]:
    """Describe what the image asks for, and what Volant makes of it instead."""
    if not filled.enabled:
        yield "[manifest] says enabled = false, so Volant makes no VM of it"
    if found.user not in ("", "root", "0", "0:0", "root:root"):
        yield f"the image runs as user {found.user}; Volant runs it as root"
    if found.has_healthcheck and not filled.health_check:
        yield (
            "the health check of the image is a command, which a manifest cannot hold;"
            " [manifest.health_check] names an endpoint instead"
        )
    ports = [
        each
        for each in found.ports
        if not re.search(rf":{re.escape(each.partition('/')[0])}\b", filled.workload.base_url)
    ]
    if ports and not (filled.network and filled.network.expose):
        yield (
            f"the image exposes {', '.join(ports)}; from Volant v0.6.6 on,"
            " [[manifest.network.expose]] forwards ports"
        )
    if not all(map(plugin.is_variable, found.environment)):
        yield "the image sets a variable without a name, which is left out"
    for name, value in filled.workload.env.items():
        if value != value.strip():
            yield f"Volant removes the spaces around the value of {name}"
    if any(not each.strip() for each in filled.workload.entrypoint):
        yield "Volant leaves out the empty arguments of the entrypoint"
    if filled.workload.type != "http" or (filled.network and filled.network.expose):
        yield "workload types exec and grpc, and network.expose, need Volant v0.6.6"


def _memory_notes(tree: Tree, memory_mb: int) -> Iterator[str]:
    """Say whether a tree is too large to be unpacked into the memory of a VM.

    The kernel unpacks into a tmpfs, which takes at most half of the memory (tmpfs(5), size).
    """
    files = {node for _, node in tree.walk() if isinstance(node, File)}
    size = sum(content_size(node.content) + -content_size(node.content) % PAGE for node in files)
    if size > memory_mb << 19:
        yield (
            f"the files take {human_size(size)} of memory, over half of the {memory_mb} MiB of"
            " [manifest.resources] memory_mb: the kernel may not be able to unpack them"
        )
