"""A complete source that fledge does not have: a greeting from a URL."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Meta

from fledge.sources.inputs import Input
from fledge.sources.source import Assembly, Kind, LockSection, Presence, Source, Url
from fledge.tree import File
from fledge.tree.digest import Digest


class GreetingPin(msgspec.Struct, frozen=True):
    sha256: Digest


class Greeting(Source, frozen=True):
    """The message that the machine shows at login."""

    role: ClassVar[str] = "greeting"
    section: ClassVar[LockSection | None] = LockSection(GreetingPin, name_key="url", name_type=Url)

    url: Annotated[Url, Meta(description="where the greeting comes from")]

    def pinned_name(self, folder: Path) -> str:
        return self.url

    def resolve(self, assembly: Assembly, old: GreetingPin | None) -> tuple[GreetingPin, str]:
        blob = assembly.session.fetcher.fetch(self.url, "greeting")
        return GreetingPin(blob.digest), self.url

    def recorded_pin(self, record: Input, platform: str) -> tuple[str, Any]:
        return "", GreetingPin(record.digest)

    def lay(self, assembly: Assembly, pin: GreetingPin | None) -> str:
        blob = assembly.session.fetcher.fetch(self.url, "greeting", pin.sha256 if pin else None)
        tree = assembly.tree
        tree.add(b"/etc/motd", File(mode=0o644, mtime_ns=tree.mtime_ns, content=blob))
        assembly.inputs.append(Input(self.role, self.url, blob.digest))
        return f"{blob.size} bytes"


KIND = Kind(
    table="greeting",
    variants=(Greeting,),
    presence={"initramfs": Presence.IF_GIVEN, "oci_rootfs": Presence.IF_GIVEN},
)
