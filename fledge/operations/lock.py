"""The lock of a config: made by asking what its names stand for, and what it pins fetched."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from fledge.errors import FledgeError
from fledge.net.fetch import Fetcher
from fledge.oci import layers
from fledge.oci.manifest import Platform, parse_platform
from fledge.oci.pinned import open_pinned
from fledge.oci.places import open_image
from fledge.project import lock
from fledge.project.config import Config, LocalAgent, Source
from fledge.project.lock import AgentPin, BusyboxPin, ImagePin, Lock, Named
from fledge.sources import agent, busybox
from fledge.tree import Tree

T = TypeVar("T")


def update(config: Config, platforms: Sequence[Platform], fetcher: Fetcher) -> Path:
    """Write the lock of a config, and say where it is.

    What an older one pins for other platforms stays. Raises `FledgeError` if something
    cannot be looked up; then the older one is as it was.
    """
    path = lock.path_beside(config.path)
    old = lock.load(path)
    new = resolve(config, platforms, old, fetcher)
    if new != old:
        lock.write(new, path, config.path)
        for line in lock.differences(old, new) if old else ():
            fetcher.reporter.note(line)
    return path


def check(config: Config, platforms: Sequence[Platform], fetcher: Fetcher) -> Path:
    """As `update`, but nothing is written: raises `FledgeError` if something would be."""
    path = lock.path_beside(config.path)
    old = lock.load(path)
    new = resolve(config, platforms, old, fetcher)
    if old is None:
        raise FledgeError(f"{path} does not exist", "Run `fledge lock` to write it.")
    if new != old:
        lines = "".join(f"\n  {line}" for line in lock.differences(old, new))
        raise FledgeError(f"{path} is not up to date:{lines}", lock.REFRESH)
    return path


def resolve(
    config: Config, platforms: Sequence[Platform], old: Lock | None, fetcher: Fetcher
) -> Lock:
    """What the names of a config stand for now, on these platforms.

    From an older lock comes what it pins for others. Raises `FledgeError`.
    """
    old = old or Lock()
    images = _resolve_images(config, platforms, old.image, fetcher)
    busybox_pin = None
    if config.strategy == "initramfs":
        architectures = [_fetch_busybox(config.source, fetcher)]
        busybox_pin = BusyboxPin(config.source.busybox_url, config.source.busybox_sha256)
    else:
        architectures = [platform.architecture for platform in platforms]
    agents = _resolve_agents(config, architectures, old.agent, fetcher)
    if agents and images and config.strategy == "oci_rootfs":
        needed = {parse_platform(key).architecture for key in images.pins}
        agents = Named(agents.name, {key: agents.pins[key] for key in needed & agents.pins.keys()})
    return Lock(images, agents, busybox_pin)


def fetch(config: Config, platforms: Sequence[Platform], fetcher: Fetcher) -> None:
    """Get all into the cache that builds for these platforms need from elsewhere.

    Raises `ConfigError` if the lock does not pin it, `FledgeError` if it cannot be had.
    """
    pins = lock.pins(config, fetcher.reporter, strict=True)
    for platform in platforms:
        if (reference := config.source.image) and (pin := pins.image(platform)):
            with fetcher.reporter.step("image") as step:
                image = open_pinned(reference, pin, platform, fetcher)
                layers.unpack(image, Tree(mtime_ns=0), fetcher.cache, fetcher.reporter)
                step.detail = f"{image.uri}, {len(image.layers)} layers"
    if config.strategy == "initramfs":
        pins.check_busybox()
        architectures = {_fetch_busybox(config.source, fetcher)}
    else:
        architectures = {platform.architecture for platform in platforms}
    if config.agent and not isinstance(config.agent, LocalAgent):
        for architecture in sorted(architectures):
            with fetcher.reporter.step("agent") as step:
                found = agent.fetch(config.agent, architecture, fetcher, pins.agent(architecture))
                step.detail = f"{found.url}"


def _resolve_images(
    config: Config, platforms: Sequence[Platform], old: Named[ImagePin] | None, fetcher: Fetcher
) -> Named[ImagePin] | None:
    reference = config.source.image
    if reference is None:
        return None
    name = lock.image_name(config)
    pins = _kept(old, name)
    for platform in platforms:
        with fetcher.reporter.step("image") as step:
            image = open_image(reference, platform, fetcher)
            pin = ImagePin(
                image.manifest,
                hashlib.sha256(image.config).hexdigest(),
                tuple(layer.diff_id for layer in image.layers),
            )
            # From a daemon the same image comes without its manifest.
            before = pins.get(str(platform), pin)
            same = pin.manifest is None and before.config == pin.config
            pins[str(platform)] = before if same else pin
            step.detail = f"{image.uri}, {platform}"
    return Named(name, pins)


def _resolve_agents(
    config: Config, architectures: Sequence[str], old: Named[AgentPin] | None, fetcher: Fetcher
) -> Named[AgentPin] | None:
    name = lock.agent_name(config.agent)
    if config.agent is None or isinstance(config.agent, LocalAgent) or name is None:
        return None
    pins = _kept(old, name) if config.strategy == "oci_rootfs" else {}
    for architecture in sorted(set(architectures)):
        with fetcher.reporter.step("agent") as step:
            pins[architecture] = agent.resolve(config.agent, architecture, fetcher)
            step.detail = pins[architecture].url
    return Named(name, pins)


def _kept(old: Named[T] | None, name: str) -> dict[str, T]:
    return dict(old.pins) if old and old.name == name else {}


def _fetch_busybox(source: Source, fetcher: Fetcher) -> str:
    """The architecture that the busybox is for."""
    with fetcher.reporter.step("busybox") as step:
        binary = fetcher.fetch(source.busybox_url, "busybox", source.busybox_sha256)
        architecture, _ = busybox.install(Tree(mtime_ns=0), binary)
        step.detail = source.busybox_url
    return architecture
