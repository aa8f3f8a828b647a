"""Opens the image that a reference names, by its transport (containers-transports(5))."""

from __future__ import annotations

from fledge.errors import ConfigError, FledgeError, HostError, NetworkError
from fledge.oci import archive, layout, registry
from fledge.oci.image import Image
from fledge.oci.manifest import Platform
from fledge.oci.reference import (
    DaemonReference,
    DockerArchive,
    Name,
    OciArchive,
    OciLayout,
    Reference,
    RegistryReference,
)
from fledge.session import Session


def open_image(reference: Reference, platform: Platform, session: Session) -> Image:
    """Open an image. Its layers are fetched later, when they are needed.

    A name without a transport is looked up in the local Docker daemon, then in its registry. If
    neither has it, the error has both answers. Raises `FledgeError` if the image does not exist or
    is damaged.
    """
    if isinstance(reference, OciLayout):
        return layout.open_image(reference.path, reference.tag, platform)
    if isinstance(reference, OciArchive):
        return archive.open_oci_archive(reference.path, reference.tag, platform, session)
    if isinstance(reference, DockerArchive):
        return archive.open_docker_archive(reference.path, reference.tag, platform, session)
    if isinstance(reference, RegistryReference):
        return registry.open_image(reference.name, platform, session)
    # Imported here because the Docker client is slow to import.
    from fledge.oci import daemon  # noqa: PLC0415

    if isinstance(reference, DaemonReference):
        return daemon.open_image(reference.name, platform, session)
    return _open_anywhere(reference, platform, session)


def _open_anywhere(name: Name, platform: Platform, session: Session) -> Image:
    """Open an image of the local Docker daemon or of its registry."""
    from fledge.oci import daemon  # noqa: PLC0415

    try:
        return daemon.open_image(name, platform, session)
    except daemon.NoDaemonImageError as error:
        local: FledgeError = error
    except (ConfigError, HostError) as error:
        # The image there is for another platform, or the user may not use the daemon.
        session.reporter.note(f"no image from a Docker daemon: {error.message}")
        local = error
    try:
        return registry.open_image(name, platform, session)
    except NetworkError as error:
        error.message = f"{error.message}; {local.message}"
        if isinstance(local, HostError):
            error.hint = f"{error.hint} {local.hint}".strip()
        raise
