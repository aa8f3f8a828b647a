"""The destination that a format writes its artifact to."""

from __future__ import annotations

import msgspec

from fledge.host.files import NewFile
from fledge.host.output import Hasher
from fledge.host.settings import Settings
from fledge.report import Reporter


class Destination(msgspec.Struct, frozen=True):
    """An empty file that becomes an artifact, with the helpers that a format needs to write it."""

    file: NewFile
    """The file. A format may make private folders in its folder, and no other user can."""
    hasher: Hasher
    """The format must pass it every byte of the artifact, in order."""
    reporter: Reporter
    settings: Settings
