"""Chooses one of the images that the index of an OCI layout lists.

One image may be listed once for each platform and once for each of its names, and artifacts that
are no images beside it. A choice that fits several images is an error: the first of them is as
likely to be the wrong one.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence

from msgspec.structs import replace

from fledge.errors import ConfigError
from fledge.oci.manifest import (
    Descriptor,
    Index,
    Manifest,
    NotAnImageError,
    Platform,
    assume_platform,
    best_manifests,
    offered,
    parse_config,
    parse_manifest,
)
from fledge.oci.reference import full_name
from fledge.tree.digest import Digest
from fledge.tree.names import printable

PLACE = re.compile(r"@([0-9]{1,9})")
MAX_READ = 16
"""Maximum manifests that are read to find out for which platform they are."""

ReadDocument = Callable[[Descriptor], bytes]


def choose_image(
    index: Index, choice: str | None, platform: Platform, uri: str, read: ReadDocument
) -> Index:
    """Return the part of an index that lists one image: the only one if ``choice`` is None.

    ``choice`` is what `layout.open_image` takes. ``uri`` names the layout in messages, ``read``
    reads a document that the index lists. Raises `ConfigError` that lists what can be chosen if
    there is no such image or more than one, and the errors of ``read``.
    """
    fitting = _fitting(index, choice)
    if len({each.digest for each in fitting}) > 1:
        fitting = _only(index, fitting, choice, platform, uri, read)
    if not fitting:
        raise _refusal("no image", index, _images(index), choice, uri)
    return Index(tuple({(each.digest, each.platform): each for each in fitting}.values()))


def _images(index: Index) -> list[Descriptor]:
    # BuildKit lists attestations as images for "unknown/unknown".
    return [each for each in index.manifests if not each.platform or each.platform.os != "unknown"]


def _fitting(index: Index, choice: str | None) -> list[Descriptor]:
    if choice is None:
        return _images(index)
    if place := PLACE.fullmatch(choice):
        return list(index.manifests[int(place[1]) :][:1])
    wanted = full_name(choice)
    return [
        each
        for each in _images(index)
        if choice in (each.tag, each.name)
        # A tag such as "latest" is no name.
        or any(wanted == full_name(name) for name in _names(each) if "/" in name)
    ]


def _names(descriptor: Descriptor) -> list[str]:
    return [name for name in (descriptor.name, descriptor.tag) if name]


def _only(
    index: Index,
    fitting: Sequence[Descriptor],
    choice: str | None,
    platform: Platform,
    uri: str,
    read: ReadDocument,
) -> list[Descriptor]:
    """Return those of the only image for the platform; all that are images if none is for it."""
    ambiguous = _refusal("more than one image", index, fitting, choice, uri)
    unknown = {each.digest for each in fitting if each.platform is None}
    if len(unknown) > MAX_READ:
        raise ambiguous
    offers = [offer for each in fitting for offer in _offers(each, platform, uri, read)]
    # Without a choice, the platform must not decide between images of different names.
    by_name = defaultdict(set)
    for each in offers:
        by_name[each.name, each.tag].add(each.digest)
    if choice is None and len(set(map(frozenset, by_name.values()))) > 1:
        raise ambiguous
    best = {each.digest for each in best_manifests(offers, platform)}
    if len(best) > 1:
        raise ambiguous
    return [each for each in fitting if each.digest in best] or offers


def _offers(
    descriptor: Descriptor, wanted: Platform, uri: str, read: ReadDocument
) -> list[Descriptor]:
    """Return the descriptor once for each platform that it leads to; none if it is no image."""
    if descriptor.platform:
        return [descriptor]
    where = f"{uri} ({descriptor.digest})"
    try:
        document = parse_manifest(read(descriptor), where)
        if isinstance(document, Manifest):
            config = parse_config(read(document.config), f"{where}: config")
            platforms = [assume_platform(config.platform, wanted)]
        else:
            platforms = [each.platform or wanted for each in document.manifests]
    except NotAnImageError:
        return []
    return [replace(descriptor, platform=each) for each in platforms]


def _refusal(
    problem: str, index: Index, listed: Sequence[Descriptor], choice: str | None, uri: str
) -> ConfigError:
    """Return the error for a choice; its hint lists the images among which to choose."""
    named = f" {printable(choice)!r}" if choice else ""
    places: dict[Digest, int] = {}
    digests: dict[str, dict[Platform | None, set[Digest]]] = {}
    for number, each in enumerate(index.manifests):
        places.setdefault(each.digest, number)
        for name in _names(each):
            digests.setdefault(name, defaultdict(set))[each.platform].add(each.digest)

    clear = {name for name, by_platform in digests.items() if _is_clear(by_platform)}
    choices = [
        next((name for name in _names(each) if name in clear), f"@{places[each.digest]}")
        for each in listed
    ]
    references = [f"{uri}:{each}" for each in dict.fromkeys(choices)]
    return ConfigError(f"{uri}: has {problem}{named}", offered(references))


def _is_clear(by_platform: dict[Platform | None, set[Digest]]) -> bool:
    """Return whether a name chooses one image, from the digests that it stands for."""
    if None in by_platform:
        return len(set().union(*by_platform.values())) == 1
    return max(map(len, by_platform.values())) == 1
