"""The source that has an image built from a Dockerfile, and applies its layers to the tree.

Building it twice gives two images, because RUN instructions read clocks and networks. So the lock
pins the image that came out, beside digests of what it was built from. The image itself is in the
cache, and nowhere else.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, NoReturn

import msgspec
from msgspec import Meta

from fledge.errors import ConfigError, FledgeError, OfflineError, unreadable_argument
from fledge.oci import builders, layout, recipe
from fledge.oci.builders import BuilderName, Request, Secret
from fledge.oci.image import Image
from fledge.oci.manifest import Platform, make_image, parse_config
from fledge.report import counted
from fledge.session import Session
from fledge.sources import build_context
from fledge.sources.image import apply
from fledge.sources.inputs import Input
from fledge.sources.source import Assembly, InputFile, KeyedBy, LockSection, Need, Source
from fledge.tree.content import Blob, hash_file
from fledge.tree.digest import Digest

NOT_REPRODUCIBLE = "To build it again gives another one: RUN instructions are not reproducible"
AGAIN = "Run `fledge lock`, which builds it and pins the new image."
THE_CACHE = "Bring the cache of the machine that built it (FLEDGE_CACHE_DIR)."

PREDEFINED = re.compile(
    r"(?i:(?:https?|ftp|no|all)_proxy)|(?:TARGET|BUILD)(?:PLATFORM|OS|ARCH|VARIANT|STAGE)"
    r"|BUILDKIT_\w+|SOURCE_DATE_EPOCH"
)
"""The build arguments that need no ARG instruction: docs.docker.com, Dockerfile reference,
"Predefined ARGs" and below."""


class DockerfilePin(msgspec.Struct, frozen=True):
    """The pin of the image that was built for one platform."""

    config: Digest
    """The digest of the image's config."""
    diff_ids: tuple[Digest, ...]
    """The digests of its uncompressed layers, lowest first."""
    dockerfile: Digest
    context: Digest
    """As `build_context.Context.digest`."""
    arguments: Digest
    """Covers the build arguments, the target and the IDs of the secrets, but not their values."""
    builder: str
    """What has built it: name and version."""


class Dockerfile(Source, frozen=True):
    """An image that a builder of this machine makes from a Dockerfile."""

    role: ClassVar[str] = "dockerfile"
    section: ClassVar[LockSection | None] = LockSection(DockerfilePin, keyed_by=KeyedBy.PLATFORM)
    missing: ClassVar[str] = "must be built"

    dockerfile: Annotated[
        InputFile,
        Meta(
            description="The Dockerfile to build the image from, in place of image.",
            examples=["Dockerfile"],
        ),
    ]
    context: Annotated[
        Path | None,
        Meta(
            description="The folder whose files the Dockerfile can copy. By default its own folder."
            " A .dockerignore or .containerignore leaves files out.",
            examples=["."],
            extra={"kind": "folder"},
        ),
    ] = None
    target: Annotated[
        str | None,
        Meta(
            description="The stage of the Dockerfile to build. By default the last one.",
            examples=["release"],
        ),
    ] = None
    build_args: Annotated[
        tuple[tuple[str, str], ...],
        Meta(
            description="The values of ARG instructions. They become part of the image: write"
            " nothing secret here.",
            examples=[{"VERSION": "1.2"}],
        ),
    ] = ()
    secrets: Annotated[
        tuple[Secret, ...],
        Meta(
            description="The secrets that RUN --mount=type=secret instructions use, by their IDs:"
            " each is in a file or in a variable of the environment. They do not become part of the"
            " context or the image, and nothing about their values is recorded.",
            examples=[{"token": {"env": "TOKEN"}, "key": {"file": "secret/key"}}],
        ),
    ] = ()
    builder: Annotated[
        BuilderName,
        Meta(
            description="The program that builds the image. auto takes the first that works, in"
            " this order.",
        ),
    ] = "auto"

    @property
    def folder(self) -> Path:
        """The folder of the context."""
        return self.context or self.dockerfile.parent

    def artifact_name(self) -> str:
        """Return the name of the context's folder."""
        return self.folder.resolve().name or "image"

    def local_files(self) -> Sequence[Path]:
        """Return the Dockerfile, its ignore file and the files with secrets."""
        ignore = build_context.ignore_file(self.dockerfile, self.folder)
        secrets = [secret.file for secret in self.secrets if secret.file]
        return [self.dockerfile, *([ignore] if ignore else []), *secrets]

    def pinned_name(self, folder: Path) -> str:
        """Return the path of the Dockerfile, relative to ``folder`` if it is below."""
        below = self.dockerfile.is_relative_to(folder)
        return str(self.dockerfile.relative_to(folder) if below else self.dockerfile)

    def conflict(self, pin: DockerfilePin, assembly: Assembly) -> str | None:
        """Compare what the pinned image was built from with what is there now.

        What a provenance records is compared by `verify`.
        """
        if not assembly.trusts_pins:
            return None
        context = self._context()
        now = self._digests(context)
        changed = [name for name, digest in now.items() if getattr(pin, name) != digest]
        if not changed:
            return None
        names = {
            "dockerfile": "the Dockerfile",
            "context": f"a file of its context ({_described(context)})",
            "arguments": "target, build_args or secrets",
        }
        return (
            f"the image of {self.pinned_name(assembly.folder)}, but since it was built there was a"
            f" change of {' and of '.join(names[name] for name in changed)}"
        )

    def loss(self, pin: DockerfilePin, session: Session) -> str | None:
        """Say so if the cache lacks a part of the image, which nobody else has."""
        if _has(session.cache.claim, pin):
            return None
        return f"the image of {self.dockerfile.name} {pin.config}, which is not in the cache"

    def resolve(self, assembly: Assembly, old: DockerfilePin | None) -> tuple[DockerfilePin, str]:
        """Build the image, unless the old pin is that of the same files and the cache has it."""
        name = self.pinned_name(assembly.folder)
        if old and not self.conflict(old, assembly) and _has(assembly.session.cache.find, old):
            return old, f"{name}, {assembly.platform}: built before"
        pin = self._build(assembly)
        return pin, f"{name}, {assembly.platform}, by {pin.builder}"

    def recorded_pin(self, record: Input, platform: str) -> tuple[str, DockerfilePin]:
        """Return the platform, and the digests of the image and of what it was built from."""
        facts = msgspec.convert(record.facts, _Facts)
        return platform, DockerfilePin(
            record.digest,
            tuple(map(Digest.parse, facts.diff_ids)),
            Digest.parse(facts.dockerfile),
            Digest.parse(facts.context),
            Digest.parse(facts.arguments),
            facts.builder,
        )

    def needs(self, assembly: Assembly, pin: DockerfilePin | None) -> Sequence[Need]:
        """Name the Dockerfile, unless the pinned image is in the cache."""
        if pin and _has(assembly.session.cache.claim, pin):
            return ()
        name = self.pinned_name(assembly.folder)
        return (Need(self.role, name, note=f"to be built by {self.builder}"),)

    def lay(self, assembly: Assembly, pin: DockerfilePin | None) -> str:
        """Apply the layers of the pinned image; build one if ``pin`` is None."""
        if pin is None:
            pin = self._build(assembly)
        elif not assembly.trusts_pins:
            pin = msgspec.structs.replace(pin, **self._digests(self._context()))
        name = self.pinned_name(assembly.folder)
        # What came with an artifact is about one image, and no other verifies it.
        hint = f"{THE_CACHE} {AGAIN}" if assembly.trusts_pins else THE_CACHE
        image = _open(name, pin, assembly.platform, assembly.session, hint)
        apply(image, assembly)
        assembly.inputs.append(_input(name, pin, assembly.platform))
        return f"{name}, {counted(len(image.layers), 'layer')}, by {pin.builder}"

    def check(self, assembly: Assembly, pin: DockerfilePin | None) -> str | None:
        """Read the Dockerfile and its context, and apply the pinned image if the cache has it."""
        if pin:
            return self.lay(assembly, pin)
        builders.environment_of(self.secrets, assembly.session.settings)
        self._compare(assembly)
        self._context()
        assembly.has_image = True
        return None

    def _build(self, assembly: Assembly) -> DockerfilePin:
        """Build the image. Raises `OfflineError` if the session is offline."""
        name, session = self.pinned_name(assembly.folder), assembly.session
        if not assembly.may_build:
            raise FledgeError(
                f"{name} would have to be built anew. {NOT_REPRODUCIBLE}",
                "Bring the provenance of the artifact, which says which image is in it.",
            )
        self._compare(assembly)
        if session.offline:
            raise OfflineError(
                f"{name} must be built, and a builder may use the network",
                "Run without --offline; or run `fledge lock`, and build from what it pins.",
            )
        context = self._context()
        digests = self._digests(context)
        request = Request(
            self.dockerfile,
            self.folder.resolve(),
            context.ignore,
            self.target,
            self.build_args,
            self.secrets,
            assembly.platform,
            name,
        )
        built = builders.build(request, self.builder, session)
        if self._digests(self._context()) != digests:
            raise FledgeError(
                f"{name} or its context has changed while the image was built",
                "Build again. What writes into the context meanwhile belongs into .dockerignore.",
            )
        config = Digest.of(built.image.config)
        diff_ids = tuple(layer.diff_id for layer in built.image.layers)
        return DockerfilePin(config, diff_ids, **digests, builder=built.builder)

    def _compare(self, assembly: Assembly) -> None:
        """Compare what is chosen and set with what the Dockerfile declares, and note what it lacks.

        Raises `ConfigError` if it is empty or lacks the target.
        """
        found = recipe.read_declarations(self.dockerfile)
        if found is None:
            return
        name, note = self.pinned_name(assembly.folder), assembly.session.reporter.note
        if self.target and not found.has_stage(self.target):
            close = difflib.get_close_matches(self.target, found.stages, n=1)
            named = [stage for stage in found.stages if not stage.isdigit()]
            stages = f"It has {', '.join(named)}." if named else "It names none; leave out target."
            raise ConfigError(
                f'[source] target = "{self.target}": {name} has no stage of that name',
                f"Did you mean {close[0]}?" if close else stages,
            )
        for argument, _ in self.build_args:
            if argument not in found.arguments and not PREDEFINED.fullmatch(argument):
                note(f"[source] build_args: no ARG instruction of {name} declares {argument}")
        for secret in self.secrets:
            if secret.id not in found.secrets:
                note(f"[source] secrets: no RUN instruction of {name} mounts {secret.id}")

    def _context(self) -> build_context.Context:
        secrets = [secret.file for secret in self.secrets if secret.file]
        return build_context.read(self.dockerfile, self.folder, secrets)

    def _digests(self, context: build_context.Context) -> dict[str, Digest]:
        """Return the fields of a pin about what is there now."""
        arguments = {
            "build_args": dict(self.build_args),
            "target": self.target,
            "secrets": sorted(secret.id for secret in self.secrets),
        }
        try:
            dockerfile = hash_file(self.dockerfile).digest
        except OSError as error:
            raise unreadable_argument(self.dockerfile, error) from error
        return {
            "dockerfile": dockerfile,
            "context": context.digest,
            "arguments": Digest.of(json.dumps(arguments, sort_keys=True).encode()),
        }


def _has(look: Callable[[Digest], Blob | None], pin: DockerfilePin) -> bool:
    """Return whether the cache has all of an image; ``look`` is how a blob is looked for there."""
    return all(look(digest) for digest in (pin.config, *pin.diff_ids))


class _Facts(msgspec.Struct):
    """The facts that provenance records beside the digest of the config."""

    diff_ids: list[str]
    dockerfile: str
    context: str
    arguments: str
    builder: str


def _input(name: str, pin: DockerfilePin, platform: Platform) -> Input:
    facts: Mapping[str, Any] = {
        "platform": str(platform),
        "diff_ids": [str(each) for each in pin.diff_ids],
        "dockerfile": str(pin.dockerfile),
        "context": str(pin.context),
        "arguments": str(pin.arguments),
        "builder": pin.builder,
    }
    return Input(Dockerfile.role, name, pin.config, facts)


def _described(context: build_context.Context) -> str:
    """Say of a context what helps to find a change in it."""
    newest = f", of which {context.newest} was changed last" if context.newest else ""
    return f"{counted(context.files, 'file')}{newest}; .dockerignore leaves files out"


def _open(name: str, pin: DockerfilePin, platform: Platform, session: Session, hint: str) -> Image:
    """Open the pinned image, all of which must be in the cache.

    ``hint`` says what to do if it is not. Raises `FledgeError` then, `ConfigError` if the pin
    contradicts itself.
    """

    def lost(digest: Digest) -> NoReturn:
        raise FledgeError(
            f"the image that {name} was built into is not in the cache: it lacks {digest}."
            f" {NOT_REPRODUCIBLE}",
            hint,
        )

    cached = session.cache.find(pin.config)
    if cached is None:
        lost(pin.config)
    config = layout.read_document(cached, name)
    if parse_config(config, name).diff_ids != pin.diff_ids:
        raise ConfigError(
            f"the diff_ids that are pinned for {name} differ from those of its config {pin.config}",
            AGAIN,
        )
    blobs = [partial(lost, diff_id) for diff_id in pin.diff_ids]
    return make_image(name, config, blobs, platform)
