"""What each command does once its options are parsed.

A command's own module declares its options, and calls the function of the same name in the module
of the same name here, as in ``runs.build.run(…)``. That module, and with it the operations, is
imported at that moment: help and shell completion need none of it.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fledge.cli.runs import boot as boot
    from fledge.cli.runs import build as build
    from fledge.cli.runs import cache as cache
    from fledge.cli.runs import check as check
    from fledge.cli.runs import config as config
    from fledge.cli.runs import diff as diff
    from fledge.cli.runs import doctor as doctor
    from fledge.cli.runs import fetch as fetch
    from fledge.cli.runs import init as init
    from fledge.cli.runs import inspect as inspect
    from fledge.cli.runs import keygen as keygen
    from fledge.cli.runs import lock as lock
    from fledge.cli.runs import manifest as manifest
    from fledge.cli.runs import pull as pull
    from fledge.cli.runs import push as push
    from fledge.cli.runs import sbom as sbom
    from fledge.cli.runs import schema as schema
    from fledge.cli.runs import sign as sign
    from fledge.cli.runs import verify as verify
else:

    def __getattr__(name: str) -> ModuleType:
        """Import a module of this package when it is first used (PEP 562)."""
        return import_module(f"{__name__}.{name}")
