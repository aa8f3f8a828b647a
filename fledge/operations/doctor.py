"""Finds out which parts of this machine fledge can use."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import msgspec

from fledge.errors import FledgeError, HostError, reason
from fledge.formats import FORMATS
from fledge.host import programs
from fledge.machine.hypervisors import CONSOLES, KVM, can_accelerate, emulator
from fledge.net.certificates import Certificates
from fledge.oci import builders, credentials
from fledge.oci.manifest import host_platform
from fledge.operations.arguments import as_session
from fledge.report import human_size
from fledge.session import Session

State = Literal["works", "absent", "broken"]
"""Absent: it is not there, and nothing asks for it. Broken: it is configured, and does not work."""

TIME_LIMIT = 25.0
"""Seconds for all checks, which run side by side. A program is given up earlier."""

LOW_SPACE = 2 << 30
"""Bytes: an image of usual size, once compressed and once unpacked."""

COMPLETIONS = {
    "bash": (
        "~/.local/share/bash-completion/completions/fledge",
        "/usr/share/bash-completion/completions/fledge",
        "/etc/bash_completion.d/fledge",
    ),
    "zsh": (
        "~/.zfunc/_fledge",
        "/usr/share/zsh/vendor-completions/_fledge",
        "/usr/local/share/zsh/site-functions/_fledge",
    ),
    "fish": (
        "~/.config/fish/completions/fledge.fish",
        "/usr/share/fish/vendor_completions.d/fledge.fish",
    ),
}
"""Where the shells look for the completion of fledge."""


class Resource(msgspec.Struct, frozen=True):
    """A part of this machine, and whether fledge can use it."""

    name: str
    state: State
    detail: str
    hint: str = ""
    """What to do about it; empty: nothing."""


def examine(session: Session | None = None) -> list[Resource]:
    """Return what of this machine fledge can use. Starts nothing, and writes nothing.

    Takes `TIME_LIMIT` seconds at most. Raises `HostError` if there is no home folder.
    """
    session = as_session(session)
    found: list[list[Resource] | None] = [None] * len(CHECKS)
    threads = [
        threading.Thread(target=_run, args=(check, session, found, number), daemon=True)
        for number, check in enumerate(CHECKS.values())
    ]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + TIME_LIMIT
    for thread in threads:
        thread.join(max(0, deadline - time.monotonic()))
    late = f"no answer within {TIME_LIMIT:.0f} s"
    resources: list[Resource] = []
    for name, answer in zip(CHECKS, found, strict=True):
        resources += [Resource(name, "broken", late)] if answer is None else answer
    return resources


def _run(
    check: Callable[[Session], Iterator[Resource]],
    session: Session,
    found: list[list[Resource] | None],
    number: int,
) -> None:
    findings = []
    try:
        for each in check(session):
            findings.append(each)
    except FledgeError as error:
        findings.append(Resource(list(CHECKS)[number], "broken", error.message, error.hint))
    except OSError as error:
        findings.append(Resource(list(CHECKS)[number], "broken", reason(error)))
    found[number] = findings


def _emulators(session: Session) -> Iterator[Resource]:
    host = host_platform().architecture
    for architecture in CONSOLES:
        name = f"QEMU for {architecture}"
        try:
            yield Resource(name, "works", programs.find(emulator(architecture), session.settings))
        except HostError as error:
            yield Resource(name, "absent", error.message, f"For fledge boot: {error.hint}")
    if can_accelerate(host, host):
        yield Resource("KVM", "works", str(KVM))
    elif KVM.exists():
        detail = f"{KVM} cannot be used; fledge boot emulates the processor, which is slower"
        yield Resource("KVM", "absent", detail, "Join the group kvm, or boot on real hardware.")
    else:
        detail = f"there is no {KVM}; fledge boot emulates the processor, which is slower"
        yield Resource("KVM", "absent", detail)


def _kernel(session: Session) -> Iterator[Resource]:
    kernel = session.settings.kernel
    if kernel is None:
        yield Resource("kernel", "absent", "FLEDGE_KERNEL is not set, so fledge boot finds its own")
    elif os.access(kernel, os.R_OK):
        yield Resource("kernel", "works", f"{kernel} (FLEDGE_KERNEL)")
    else:
        detail = f"FLEDGE_KERNEL names {kernel}, which cannot be read"
        yield Resource("kernel", "broken", detail, "Set it to the path of a kernel, or unset it.")


def _daemons(session: Session) -> Iterator[Resource]:
    # Imported late, because the HTTP client is slow to import.
    from fledge.oci import daemon  # noqa: PLC0415

    is_chosen = bool(session.settings.environment.get("DOCKER_HOST"))
    found = daemon.survey(session)
    for url, problem in found:
        if problem:
            yield Resource("Docker API", "broken" if is_chosen else "absent", problem)
        else:
            yield Resource("Docker API", "works", url)
    if not found:
        hint = "Images come from registries. To use local ones, start Docker or podman's service."
        yield Resource("Docker API", "absent", "no daemon listens", hint)


def _builders(session: Session) -> Iterator[Resource]:
    found = list(builders.survey(session.settings))
    for name, version, problem in found:
        state: State = "absent" if problem else "works"
        yield Resource("builder", state, f"{name}: {problem}" if problem else f"{name} {version}")
    if not found:
        hint = "To build from a Dockerfile, install podman, buildah or docker.io."
        yield Resource("builder", "absent", "none is installed", hint)


def _logins(session: Session) -> Iterator[Resource]:
    any_found = False
    for path in session.settings.login_files:
        try:
            hosts = credentials.hosts(path)
        except FledgeError as error:
            yield Resource("logins", "broken", error.message, error.hint)
            continue
        if hosts:
            any_found = True
            named = ", ".join(hosts).replace("*", "all, by a helper")
            yield Resource("logins", "works", f"{named} ({path})")
    if not any_found:
        hint = "For private images: docker login HOST, or podman login HOST."
        yield Resource("logins", "absent", "none for registries", hint)


def _network(session: Session) -> Iterator[Resource]:
    settings = session.settings
    bundle = (
        settings.environment.get("REQUESTS_CA_BUNDLE") or Certificates(settings.ca_bundle).trusted()
    )
    if bundle and not os.access(bundle, os.R_OK):
        detail = f"the CA certificates {bundle} cannot be read"
        hint = "Check SSL_CERT_FILE and REQUESTS_CA_BUNDLE."
        yield Resource("CA certificates", "broken", detail, hint)
    else:
        yield Resource("CA certificates", "works", bundle or "those that come with requests")
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        if value := settings.environment.get(name) or settings.environment.get(name.upper()):
            yield _proxy(name, value)
    mirrors = settings.registry_mirrors
    if mirrors:
        yield Resource("mirrors", "works", ", ".join(mirrors))
    _ = session.pace  # says what is wrong with FLEDGE_MIN_SPEED


def _proxy(name: str, value: str) -> Resource:
    try:
        parts = urlsplit(value if "://" in value else f"http://{value}")
        host = f"{parts.hostname}:{parts.port}" if parts.port else parts.hostname
    except ValueError:
        host = None
    if host is None:
        return Resource("proxy", "broken", f"{name} is not a URL", "Write http://HOST:PORT.")
    return Resource("proxy", "works", f"{host} ({name})")  # without the login in the URL


def _formats(session: Session) -> Iterator[Resource]:
    for each in {each.name: each for each in FORMATS}.values():
        try:
            each().check(session.settings)
            yield Resource("format", "works", each.name)
        except HostError as error:
            yield Resource("format", "absent", error.message, error.hint)


def _cache(session: Session) -> Iterator[Resource]:
    root = session.cache.root
    folder = root
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
        hint = "Set FLEDGE_CACHE_DIR to a folder that you can write to."
        yield Resource("cache", "broken", f"{root} cannot be written to", hint)
        return
    try:
        space = os.statvfs(folder)
    except OSError as error:
        yield Resource("cache", "broken", f"{root}: {reason(error)}")
        return
    free = space.f_bavail * space.f_frsize
    hint = "Free some space: fledge cache prune --older-than 30d." if free < LOW_SPACE else ""
    detail = f"{root}, {human_size(free)} free on {_filesystem(folder)}"
    yield Resource("cache", "works", detail, hint)


def _filesystem(folder: Path) -> str:
    """Return the type of the filesystem that a folder is on (proc_pid_mountinfo(5))."""
    device = folder.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines():
            mount, _, filesystem = line.partition(" - ")
            if mount.split()[2] == wanted:
                return filesystem.split()[0]
    except OSError:
        pass
    return "a filesystem of unknown type"


def _completions(session: Session) -> Iterator[Resource]:
    home = session.settings.home
    for shell, places in COMPLETIONS.items():
        if shutil.which(shell, path=programs.search_path(session.settings)) is None:
            continue
        paths = [Path(place.replace("~", str(home))) for place in places if home or place[0] == "/"]
        found = next((path for path in paths if path.is_file()), None)
        if found:
            yield Resource("completion", "works", f"{shell}: {found}")
        else:
            folder = places[0].rpartition("/")[0]
            hint = f"Write it there: mkdir -p {folder} && fledge completion {shell} > {places[0]}"
            yield Resource("completion", "absent", f"{shell} does not complete fledge", hint)


CHECKS: dict[str, Callable[[Session], Iterator[Resource]]] = {
    "cache": _cache,
    "network": _network,
    "logins": _logins,
    "Docker API": _daemons,
    "builder": _builders,
    "format": _formats,
    "QEMU": _emulators,
    "kernel": _kernel,
    "completion": _completions,
}
"""The checks, by the name of what did not answer in time."""
