"""Boots an artifact in a virtual machine, as Volant does, and watches what it does."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import IO
from urllib.parse import SplitResult

import msgspec

from fledge.errors import (
    ConfigError,
    CorruptError,
    ExpectationError,
    FledgeError,
    HostError,
    MalformedError,
    reason,
    unreadable_argument,
)
from fledge.formats import Format, artifact_requirements, find_format, open_artifact
from fledge.host import programs
from fledge.host.files import PathLike
from fledge.machine import (
    boot_kernel,
    device_mapper,
    hypervisors,
    kernels,
    modules,
    network,
    shim,
)
from fledge.machine import check as machine_check
from fledge.machine import probe as probes
from fledge.machine.boot_kernel import BootKernel
from fledge.machine.console import Ending, Watch, attend, running
from fledge.machine.diagnosis import diagnose
from fledge.machine.hypervisors import CONSOLES, VirtualMachine
from fledge.machine.kconfig import State
from fledge.machine.kernels import PROFILES
from fledge.machine.network import ADDRESS, GATEWAY, NETMASK, Forward
from fledge.machine.probe import Probe
from fledge.machine.shim import INIT
from fledge.oci.manifest import host_platform
from fledge.operations import boots, seal
from fledge.operations.arguments import as_config, as_session
from fledge.operations.manifest import workload_context
from fledge.operations.seal import Seal
from fledge.project import manifest as plugin
from fledge.project.manifest import Address, PluginManifest
from fledge.session import Session
from fledge.sources import paths
from fledge.sources.busybox import (
    DEFAULT_ARCHITECTURE,
    DEFAULT_DIGEST,
    DEFAULT_URL,
)
from fledge.sources.init import has_built_in, mounted
from fledge.tree import File, Tree, elf
from fledge.tree.applets import MAX_BUSYBOX_SIZE
from fledge.tree.content import Content, Span, content_size, hash_file, read_content, read_range
from fledge.tree.elf import ELF_MAGIC
from fledge.tree.kernel import DM_VERITY, OVERLAY, Requirement
from fledge.tree.programs import Context, Problem
from fledge.tree.regular import read_regular

DEFAULT_MEMORY = 512
"""MiB, without a manifest: the default of a manifest."""

DEFAULT_TIMEOUT = 300
"""Seconds to wait for what is expected. An emulated machine on a busy host takes a minute."""

SHOWN_LINES = 12
"""Lines of the console in an error."""
SHOWN_WIDTH = 200
"""Characters of each of them."""


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """The virtual machine to boot an artifact in."""

    kernel: PathLike | None = None
    """A kernel image. None: ``$FLEDGE_KERNEL``, ``[target] kernel``, or the one of this host."""
    config: PathLike | None = None
    """A fledge.toml that may name the kernel. None: there is none."""
    manifest: PathLike | None = None
    """A plugin manifest. None: the one beside the artifact, if there is one."""
    memory: int | None = None
    """MiB. None: as the manifest says."""
    cpus: int | None = None
    """None: as the manifest says."""
    publish: Sequence[str] = ()
    """Ports of this host that lead to the guest, each ``HOST:GUEST``. None: it has no network."""
    append: str = ""
    """More for the kernel's command line."""
    volant: bool = False
    """Unpack an initramfs over what is baked into Volant's kernel."""


class Gate(msgspec.Struct, frozen=True, kw_only=True):
    """What a guest has to do to pass."""

    expect: Sequence[str] = ()
    """Regular expressions, each of which some line of the console has to match. A line that is not
    complete counts after a second without output, but not for an expression with ``$``."""
    probe: str | None = None
    """The URL of a server that has to answer with a status from 200 to 399."""
    timeout: float | None = None
    """Seconds. None: `DEFAULT_TIMEOUT` if something is expected, else for ever."""


class Console(msgspec.Struct, frozen=True):
    """Where the console of a guest goes, and comes from."""

    output: Callable[[bytes], None] = lambda _: None
    keyboard: int | None = None
    """A descriptor that keys are read from. Ctrl-A X ends the guest. None: there are no keys."""


def boot(
    artifact: PathLike,
    *,
    machine: Machine | None = None,
    gate: Gate | None = None,
    console: Console | None = None,
    session: Session | None = None,
) -> Ending:
    """Boot an artifact in QEMU, until all that is expected was seen or the guest ends.

    The artifact is not written to, and nothing is left on this host. Raises `ExpectationError` if
    something that is expected was not seen, `FledgeError` with a diagnosis if the guest dies,
    `HostError` if this machine lacks a kernel or a program, `CorruptError` if the manifest has
    another checksum than the artifact, and `ConfigError`.
    """
    machine, gate, console = machine or Machine(), gate or Gate(), console or Console()
    session = as_session(session)
    if gate.timeout is not None and not gate.timeout > 0:  # nan is not greater either
        raise ConfigError(
            f"a timeout of {gate.timeout} is no time to wait", "Write seconds, such as 60."
        )
    watch = Watch([_pattern(each) for each in gate.expect])
    url = probes.parse(gate.probe) if gate.probe else None
    plan = _plan(Path(artifact), machine, session)
    if url:
        _check_published(url, plan.machine.forwards)
    if not plan.machine.accelerated:
        session.reporter.note(
            f"{plan.machine.architecture} is emulated, which is slow: KVM cannot be used"
        )
    qemu = programs.find(hypervisors.emulator(plan.machine.architecture), session.settings)
    is_gate = bool(gate.expect or url)
    timeout = gate.timeout or (DEFAULT_TIMEOUT if is_gate else None)
    with (
        _initrd_file(plan) as initrd,
        running(
            hypervisors.qemu(_with_initrd(plan.machine, initrd), qemu),
            [initrd.fileno()] if initrd else [],
            session.settings.program_folders,
        ) as guest,
        Probe(url) if url else nullcontext() as probe,
    ):
        ending = attend(
            guest,
            watch,
            deadline=time.monotonic() + timeout if timeout else None,
            started=probe.start if probe else lambda: None,
            satisfied=lambda: is_gate and not watch.missing and (not probe or probe.succeeded),
            output=console.output,
            keyboard=console.keyboard,
        )
    _judge(ending, watch, probe, gate, plan)
    return ending


def boot_command(
    artifact: PathLike,
    hypervisor: str = "qemu",
    *,
    machine: Machine | None = None,
    session: Session | None = None,
) -> str:
    """Return the command that boots an artifact, or for firecracker the configuration.

    ``hypervisor`` is qemu, cloud-hypervisor or firecracker. An initramfs that the command needs
    beside the artifact is put into the cache. Raises as `boot`.
    """
    machine, session = machine or Machine(), as_session(session)
    hypervisors.check(hypervisor, [network.parse_forward(each) for each in machine.publish])
    plan = _plan(Path(artifact), machine, session)
    vm = plan.machine
    if plan.archive is not None:
        with session.cache.partial(None, lambda: None) as partial:
            for piece in plan.initrd():
                partial.write(piece)
            vm = msgspec.structs.replace(vm, initrd=str(session.cache.add(partial).path))
    if vm.disk and not vm.is_read_only and hypervisor != "qemu":
        session.reporter.note(f"{hypervisor} writes to {vm.disk}: give each machine a copy")
    if hypervisor == "firecracker" and not _is_elf(Path(vm.kernel)) and vm.architecture == "amd64":
        session.reporter.note(f"firecracker needs a vmlinux, and {vm.kernel} is none")
    return hypervisors.describe(vm, hypervisor)


class _Plan(msgspec.Struct, frozen=True):
    """How to boot an artifact."""

    artifact: Path
    machine: VirtualMachine
    """Its initrd is the artifact, which is right only without an archive."""
    manifest: PluginManifest | None
    baked: bool
    """Whether the artifact is unpacked over what is baked into Volant's kernel."""
    archive: bytes | None
    """What comes before the artifact in the initramfs, or instead of a disk. None: nothing."""

    def initrd(self) -> Iterator[bytes]:
        """Yield the initramfs in pieces."""
        yield self.archive or b""
        if not self.machine.disk:
            size = self.artifact.stat().st_size
            yield from read_content(Span(self.artifact, 0, size))


def _with_initrd(machine: VirtualMachine, initrd: IO[bytes] | None) -> VirtualMachine:
    """Return the machine with an open file as its initramfs."""
    if initrd is None:
        return machine
    return msgspec.structs.replace(machine, initrd=f"/proc/self/fd/{initrd.fileno()}")


@contextmanager
def _initrd_file(plan: _Plan) -> Iterator[IO[bytes] | None]:
    """Open a file without a name that has the initramfs; None: it is the artifact itself."""
    if plan.archive is None:
        yield None
        return
    with tempfile.TemporaryFile(prefix="fledge-") as file:
        try:
            for piece in plan.initrd():
                file.write(piece)
            file.flush()
        except OSError as error:
            raise FledgeError(
                f"the initramfs could not be written to {tempfile.gettempdir()}: {reason(error)}",
                "Free some space there, or set TMPDIR to another folder.",
            ) from error
        yield file


def _check_published(url: SplitResult, forwards: Sequence[Forward]) -> None:
    """Raise `ConfigError` if no port of the guest is where the URL leads."""
    port = url.port or 80
    if url.hostname not in (network.LOOPBACK, "localhost"):
        raise ConfigError(
            f"{url.geturl()} is not in the guest: its ports are published at {network.LOOPBACK}",
            f"Write http://{network.LOOPBACK}:{port}/ and --publish {port}:PORT.",
        )
    if port not in [each.host for each in forwards]:
        raise ConfigError(
            f"no port of the guest is published as {port}, so {url.geturl()} cannot be probed",
            f"Add --publish {port}:PORT with the port of the guest.",
        )


def _is_elf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(ELF_MAGIC)) == ELF_MAGIC


def _plan(artifact: Path, wanted: Machine, session: Session) -> _Plan:
    format_, _ = find_format(artifact)
    is_disk = format_.manifest_key == "rootfs"
    sealed = _find_seal(artifact, session) if is_disk else None
    kernel = _kernel(wanted, session)
    if kernel.architecture not in CONSOLES:
        raise ConfigError(
            f"{kernel.path} is a kernel for {kernel.architecture}, which fledge cannot boot",
            f"Name a kernel for {' or '.join(CONSOLES)}.",
        )
    _note_missing(artifact, DM_VERITY if sealed else (), kernel, session)
    forwards = tuple(map(network.parse_forward, wanted.publish))
    manifest = _manifest(artifact, format_, wanted.manifest, session)
    disk = _disk(artifact, format_, sealed, kernel.architecture) if is_disk else None
    names = (*shim.DRIVERS, *(disk.drivers if disk else ()))
    drivers = modules.load_order(kernel.modules, names) if kernel.modules else []
    archive = None
    if is_disk or drivers or wanted.volant or forwards:
        busybox = _busybox(artifact, kernel.architecture, session, is_disk=is_disk)
        pieces = shim.write(busybox, drivers, disk, network=bool(forwards), baked=wanted.volant)
        archive = b"".join(pieces)
    resources = manifest.resources if manifest else None
    path = str(artifact.absolute())
    machine = VirtualMachine(
        architecture=kernel.architecture,
        kernel=str(kernel.path.absolute()),
        initrd=path,
        command_line=_command_line(
            manifest,
            kernel.architecture,
            wanted.append,
            network=bool(forwards),
            has_archive=archive is not None,
            disk=is_disk,
        ),
        disk=path if is_disk else None,
        is_read_only=disk is not None and disk.needs_overlay,
        hash_disk=None if not sealed or sealed.is_appended else str(sealed.file.absolute()),
        memory=wanted.memory or (resources.memory_mb if resources else DEFAULT_MEMORY),
        cpus=wanted.cpus or (resources.cpu_cores if resources else 1),
        forwards=forwards,
        accelerated=hypervisors.can_accelerate(kernel.architecture, host_platform().architecture),
    )
    return _Plan(artifact, machine, manifest, wanted.volant and not is_disk, archive)


def _note_missing(
    artifact: Path, more: Sequence[Requirement], kernel: BootKernel, session: Session
) -> None:
    """Report what an artifact needs and the kernel lacks, if both are known; ``more`` is needed as
    well. What the kernel has as a module, fledge loads.
    """
    try:
        config = kernels.find(str(kernel.path.absolute()), Path())
        requirements = [*artifact_requirements(artifact), *more]
    except FledgeError:  # the kernel has its say about a damaged artifact
        return
    for each in machine_check.check(requirements, config).findings:
        if each.requirement.essential and each.state is State.MISSING:
            session.reporter.note(
                f"kernel {kernel.path}: {each.requirement.purpose}: {each.advice}"
            )


def _find_seal(artifact: Path, session: Session) -> Seal | None:
    """Return the seal of a disk with the root hash in its provenance, if there is one."""
    found = seal.find(artifact)
    if found is None:
        return None
    recorded = seal.recorded_root_hash(artifact)
    if recorded is None or recorded == found.root_hash:
        return found
    session.reporter.note(
        f"the hash tree of {artifact} has another root hash than its provenance, so the kernel"
        " reads nothing of the disk"
    )
    return msgspec.structs.replace(found, root_hash=recorded)


def _disk(
    artifact: Path, format_: type[Format], sealed: Seal | None, architecture: str
) -> shim.Disk:
    """Return how a disk is mounted."""
    if sealed:
        tree_device = "/dev/vda" if sealed.is_appended else "/dev/vdb"
        table = seal.device_table(sealed, "/dev/vda", tree_device)
        program = device_mapper.program(architecture, table)
        return shim.Disk(format_.name, needs_overlay=True, seal=program)
    if format_().read_only or OVERLAY in artifact_requirements(artifact):
        return shim.Disk(format_.name, needs_overlay=True)
    return shim.Disk("ext4", needs_overlay=False)  # what Volant mounts any disk as


def _kernel(wanted: Machine, session: Session) -> BootKernel:
    named = wanted.kernel or session.settings.kernel
    if named:
        return boot_kernel.open_kernel(Path(named))
    if wanted.config:
        config = as_config(wanted.config)
        if config.target.kernel and config.target.kernel not in PROFILES:
            # It may be the configuration of a kernel, which cannot be booted.
            with suppress(ConfigError):
                return boot_kernel.open_kernel(config.path.parent / config.target.kernel)
    return boot_kernel.host_kernel()


def _manifest(
    artifact: Path, format_: type[Format], given: PathLike | None, session: Session
) -> PluginManifest | None:
    """Read the manifest that is given, or the one beside the artifact, which has to be for it."""
    path = Path(given) if given else plugin.path_beside(artifact)
    if not given and not path.exists():
        session.reporter.note(f"{path} does not exist, so the agent gets no manifest")
        return None
    try:
        manifest = plugin.read(read_regular(path, plugin.MAX_MANIFEST_SIZE))
    except OSError as error:
        raise unreadable_argument(path, error) from error
    except MalformedError as error:
        raise ConfigError(
            f"{path} is not a plugin manifest: {error}", "Write it again with fledge build."
        ) from error
    advice = f"Remove {path}, or build the artifact with [manifest] in fledge.toml."
    if given:
        advice = "Name the manifest of this artifact with -m."
    described = f"a disk in format {manifest.rootfs.format}" if manifest.rootfs else "an initramfs"
    actual = "a disk in format raw" if format_.manifest_key == "rootfs" else "an initramfs"
    if described != actual:
        raise ConfigError(
            f"{path} is the manifest of {described}, but {artifact} is {actual}", advice
        )
    if not manifest.enabled:
        session.reporter.note(f"{path} does not say enabled: true, so Volant makes no VM of it")
    if manifest.digest is None:
        session.reporter.note(f"{path} has no checksum, so it may be that of another artifact")
        return manifest
    digest = hash_file(artifact).digest
    if manifest.digest != digest:
        raise CorruptError(
            f"{artifact} has sha256 {digest.hex}, but {path} says {manifest.digest}: the artifact"
            " is damaged, or this is the manifest of another",
            advice,
        )
    return manifest


def _command_line(
    manifest: PluginManifest | None,
    architecture: str,
    append: str,
    *,
    network: bool,
    has_archive: bool,
    disk: bool,
) -> str:
    """Return Volant's command line, and behind it what this machine and kernel need."""
    address = Address(ADDRESS, GATEWAY, NETMASK, "fledge") if network else None
    parts = [plugin.boot_parameters(manifest, address, disk=disk)]
    if CONSOLES[architecture] != "ttyS0":
        parts.append(f"console={CONSOLES[architecture]}")
    # Errors and warnings of the kernel, which say why it panics.
    parts.append("loglevel=5")
    if has_archive:
        parts.append(f"rdinit={INIT}")
    line = " ".join(filter(None, [*parts, append]))
    if "\n" in line or "\0" in line:
        raise ConfigError("the kernel's command line is one line", "Change --append.")
    if (excess := len(os.fsencode(line)) - plugin.MAX_COMMAND_LINE) > 0:
        raise ConfigError(
            f"the kernel's command line is {excess} bytes too long:"
            f" it ends at {plugin.MAX_COMMAND_LINE} bytes",
            "Shorten --append or the manifest.",
        )
    return line


def _busybox(artifact: Path, architecture: str, session: Session, *, is_disk: bool) -> bytes:
    """Return a static busybox: of an initramfs its own, else that of this host, of the disk, or the
    default.

    Raises `HostError` if there is none for the architecture.
    """
    if not is_disk and (own := _own_busybox(artifact, None)):
        return own
    found = shutil.which("busybox", path=session.settings.program_folders)
    if found:
        with suppress(OSError, FledgeError):
            span = Span(Path(found), 0, Path(found).stat().st_size)
            if _is_usable(span, architecture):
                return b"".join(read_content(span))
    if is_disk:
        # A disk that is damaged, or that this user cannot read, may boot all the same.
        with suppress(FledgeError):
            if own := _own_busybox(artifact, architecture):
                return own
    if architecture == DEFAULT_ARCHITECTURE:
        blob = session.fetcher.fetch(DEFAULT_URL, "busybox", DEFAULT_DIGEST)
        return b"".join(read_content(blob))
    path = paths.BUSYBOX.decode()
    raise HostError(
        f"there is no static busybox for {architecture}, which prepares the guest: neither {path}"
        f" in {artifact} nor {found or 'a program busybox'} on this machine is one",
        f"Put a static busybox for {architecture} at {path} with [mappings], or install"
        f" busybox-static on a machine with {architecture} and boot it there.",
    )


def _own_busybox(artifact: Path, architecture: str | None) -> bytes | None:
    """Return the static busybox in an artifact, if it has one; ``architecture`` is None: of any."""
    with open_artifact(artifact, paths.BUSYBOX) as opened:
        node = opened.tree.get(paths.BUSYBOX, follow=True)
        if isinstance(node, File) and _is_usable(node.content, architecture):
            return b"".join(read_content(node.content))
    return None


def _is_usable(program: Content, architecture: str | None) -> bool:
    """Return whether a program is a static ELF file; None: for any architecture."""
    if content_size(program) > MAX_BUSYBOX_SIZE or read_range(program, 0, 4) != ELF_MAGIC:
        return False
    try:
        binary = elf.read(program)
    except MalformedError:
        return False
    return not binary.loader and architecture in (None, binary.architecture)


def _pattern(text: str) -> re.Pattern[str]:
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise ConfigError(
            f"{text!r} is not a regular expression: {error}", "Put a backslash before ( and others."
        ) from error
    if pattern.search(""):
        raise ConfigError(
            f"{text!r} matches an empty line, so that every guest would pass",
            "Write what only the line has that you wait for.",
        )
    return pattern


def _shortened(line: str) -> str:
    return line if len(line) <= SHOWN_WIDTH else line[:SHOWN_WIDTH] + "…"


def _judge(ending: Ending, watch: Watch, probe: Probe | None, gate: Gate, plan: _Plan) -> None:
    """Raise what the ending of a guest means."""
    said = (ending is Ending.DIED and watch.last_words) or watch.tail()
    lines = [_shortened(line) for line in said[-SHOWN_LINES:]]
    if ending is Ending.DIED:
        diagnosis = diagnose(said, _suspect(plan))
        raise FledgeError(f"the guest died: {diagnosis.problem}", diagnosis.advice, lines)
    if ending is Ending.SEEN or not (gate.expect or gate.probe):
        return
    missing = [f"no line matched {each.pattern!r}" for each in watch.missing]
    if probe and not probe.succeeded:
        missing.append(f"{gate.probe}: {_shortened(probe.answer) or 'not asked yet'}")
    raise ExpectationError(
        f"{ending.value} before all that was expected was seen: {'; '.join(missing)}",
        "Raise --timeout if the guest was not ready yet." if ending is Ending.TIMED_OUT else "",
        lines,
    )


def _suspect(plan: _Plan) -> Problem | None:
    """Say why a program that the guest starts cannot run, as far as the artifact shows it."""
    with suppress(FledgeError), open_artifact(plan.artifact) as opened:
        tree, architecture = opened.tree, plan.machine.architecture
        candidates: list[tuple[Tree, list[str], Context]] = []
        if plan.baked and (why := boots.over_baked_problem(tree, architecture, None)):
            return why
        if not plan.machine.disk:
            candidates.append((tree, [boots.INIT], Context(architecture)))
        if plan.machine.disk or has_built_in(tree):
            candidates.append((tree, [paths.AGENT.decode()], Context(architecture)))
            if plan.manifest:
                workload = plan.manifest.workload
                in_memory = not plan.machine.disk
                context = workload_context(workload, architecture, in_memory=in_memory)
                candidates.append((mounted(tree), workload.entrypoint, context))
        problems = (each for candidate in candidates for each in boots.problems(None, *candidate))
        return next((each for each in problems if each.is_certain), None)
    return None
