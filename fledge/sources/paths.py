"""Paths in an artifact, and in this package, that more than one module needs."""

from __future__ import annotations

from pathlib import Path

AGENT = b"/bin/kestrel"
"""The agent in an artifact."""

BUSYBOX = b"/bin/busybox"
"""The busybox of an initramfs."""

IMAGE_CONFIG = b"/etc/fsify-entrypoint"
"""An unchanged copy of the image's config. The engine does not read it: what it runs is in the
plugin manifest. `fledge inspect` and `fledge manifest` do."""

BUILT_IN_INIT = Path(__file__).with_name("init.sh")
"""The script that becomes ``/init`` unless the user provides one."""
