"""Checks that an artifact can boot, as far as that can be seen without booting it."""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator, Sequence

from msgspec.structs import replace

from fledge.errors import ConfigError
from fledge.formats import Format
from fledge.machine import check as machine
from fledge.machine import shim
from fledge.machine.check import Finding, unable
from fledge.machine.kconfig import State
from fledge.machine.kernels import Kernel
from fledge.project.config import Config
from fledge.sources import paths
from fledge.sources.init import has_built_in, mounted
from fledge.sources.mappings import Mappings, Placement
from fledge.sources.source import Assembly
from fledge.tree import Directory, File, Node, Symlink, Tree, programs
from fledge.tree.content import content_size
from fledge.tree.kernel import Requirement, needed_by, xattr_names
from fledge.tree.names import printable
from fledge.tree.programs import Context, Problem

AGENT_SIZE = 7 << 20
"""Bytes to reserve for the agent in Volant's kernel, which has about 6 MB. It copies itself to the
disk, whatever agent is there."""

AGENT_COPY = b"/usr/local/bin/kestrel"
"""Where the agent copies itself to on a disk."""

AGENT_ROOM = 256 << 10
"""Bytes that the agent needs on a disk beside its own size, for the folders that it makes."""


INIT = "/init"
"""The first program of an initramfs."""


def check(config: Config, assembly: Assembly, kernel: Kernel) -> None:
    """Raise `ConfigError` if the artifact needs an init and has none that can start on a kernel, or
    if the agent cannot copy itself to it.

    What keeps another program of the project from running is a note, and so are the links that the
    init has to put back on Volant's kernel.
    """
    tree, note = assembly.tree, assembly.session.reporter.note
    where = f"{config.path}: the artifact would not boot"
    if config.format.needs_init:
        for why in init_problems(tree, assembly.architecture, kernel):
            if why.is_certain:
                raise ConfigError(f"{where}: {why.text}", why.advice)
            note(f"the init may not run: {why.text}")
        if kernel.is_volant:
            if over := over_baked_problem(tree, assembly.architecture, kernel):
                raise ConfigError(f"{where} on Volant: {over.text}", over.advice)
            if lost := _lost_links(tree):
                note(f"{lost}: the init has to put the link back")
    _check_hidden(config, assembly)
    for lack in _lacks_for_xattrs(config, tree, kernel):
        note(lack)
    if config.format.read_only and kernel.is_volant:
        note(
            "Volant's agent copies itself to the disk, which is read-only: it boots only where it"
            " gets an overlay, as in fledge boot"
        )
    if not config.format.in_memory and isinstance(_agent(tree), File):
        _check_agent_folder(config, tree)
        _check_room(config, tree)
    context = Context(assembly.architecture, {"PATH": programs.DEFAULT_PATH})
    for source in config.sources:
        for path in source.programs():
            command = [path.decode("utf-8", "surrogateescape")]
            if found := next(problems(kernel, tree, command, context), None):
                can = "cannot" if found.is_certain else "may not"
                note(f"the {source.role} {can} run: {found.text}")


def _lacks_for_xattrs(config: Config, tree: Tree, kernel: Kernel) -> Iterator[str]:
    """Yield what a kernel lacks to show the extended attributes in a tree, as `lacks`."""
    if names := xattr_names(tree):
        conditional = [each for each in config.requirements if each.xattrs is not None]
        yield from lacks(needed_by(conditional, names), kernel)


def _check_hidden(config: Config, assembly: Assembly) -> None:
    """Raise `ConfigError` if something is mapped to where the init of an initramfs mounts a
    filesystem. For a disk, whose agent does, it is a note.
    """
    for placement in _hidden(config, assembly.tree):
        where = printable(placement.path)
        hides = f"would be hidden at {where}: a filesystem is mounted over it at boot"
        if config.format.in_memory:
            raise ConfigError(
                f"{config.path}: [mappings] {placement.source} {hides}",
                "Map it elsewhere, and let the workload copy or link it there.",
            )
        name = assembly.relative(placement.source)
        assembly.session.reporter.note(f"the mapping of {name} {hides}")


def _hidden(config: Config, tree: Tree) -> Iterator[Placement]:
    """Yield what is mapped to a place that the built-in init or the agent mount something over,
    maybe through a symlink. What another init mounts is not known.
    """
    mappings = config.source(Mappings)
    if mappings is None or (config.format.in_memory and not has_built_in(tree)):
        return
    seen = mounted(tree)
    for placement in mappings.placements:
        is_folder = placement.file_type == stat.S_IFDIR
        if not is_folder and seen.get(placement.path) is not tree.get(placement.path):
            yield placement


def lacks(
    requirements: Iterable[Requirement], kernel: Kernel, architecture: str = ""
) -> Iterator[str]:
    """Yield what a kernel lacks to boot an artifact, and what to change. ``architecture`` is that
    of the artifact (OCI name; empty: not known).
    """
    for each in machine.check(requirements, kernel.config, architecture).findings:
        if each.advice:
            yield f"kernel {kernel.name}: {each.requirement.purpose}: {each.advice}"


def find_unable(
    format_: type[Format], tree: Tree, architecture: str, kernel: Kernel
) -> Iterator[Finding]:
    """Yield what keeps an artifact, whoever made it, from booting on a kernel.

    ``architecture`` is that of the artifact (OCI name; empty: not known).
    """
    why = None
    if format_.needs_init:
        found = init_problems(tree, architecture, kernel)
        why = next((each for each in found if each.is_certain), None)
        if kernel.is_volant:
            why = why or over_baked_problem(tree, architecture, kernel)
    if why:
        yield unable("init", why)
    elif why := _agent_problem(format_, tree, architecture, kernel):
        yield unable("agent", why)


def problems(
    kernel: Kernel | None, tree: Tree, command: Sequence[str], context: Context
) -> Iterator[Problem]:
    """Yield what keeps a command from running on the kernel that is to boot the artifact.

    None: the kernel is not known, and has what is needed.
    """
    for each in programs.problems(tree, command, context):
        if not each.option:
            yield each
            continue
        if kernel is None:
            continue
        is_other = kernel.config.architecture not in (None, context.architecture)
        if not is_other and kernel.config.state(each.option) is State.MISSING:
            lacks = f"{each.text}: the kernel {kernel.name} has no CONFIG_{each.option}"
            yield replace(each, text=lacks)


def init_problems(tree: Tree, architecture: str, kernel: Kernel) -> Iterator[Problem]:
    """Yield why the init of an initramfs cannot start."""
    node = tree.get(INIT.encode(), follow=True)
    if isinstance(node, File) and node.mode & 0o111:
        yield from problems(kernel, tree, [INIT], Context(architecture))
        return
    yield Problem(
        f"it has no executable {INIT}",
        f"Map an executable to {INIT}, or leave out [init] to get the built-in one.",
    )


def over_baked_problem(tree: Tree, architecture: str, kernel: Kernel | None) -> Problem | None:
    """Say why the init of an initramfs cannot start once Volant's kernel has unpacked it over its
    own archive; None if nothing stands against it that did not before. ``kernel`` is as for
    `problems`.
    """
    lost = _lost_links(tree)
    if not lost:
        return None
    found = problems(kernel, shim.over_baked(tree)[0], [INIT], Context(architecture))
    why = next((each for each in found if each.is_certain), None)
    return why and Problem(
        f"{why.text}: {lost}",
        "Use paths without these links for the init and what it needs, such as #!/usr/bin/sh, or"
        " name another kernel in [target].",
    )


def _lost_links(tree: Tree) -> str:
    """Say which links are lost over the archive in Volant's kernel; nothing if the init of a tree
    puts them back.
    """
    _, lost = shim.over_baked(tree)
    if not lost or has_built_in(tree):
        return ""
    links = " and ".join(f"{printable(path)} -> {printable(node.target)}" for path, node in lost)
    return f"where the artifact has {links}, Volant's kernel has a folder of its own"


def _agent_problem(
    format_: type[Format], tree: Tree, architecture: str, kernel: Kernel
) -> Problem | None:
    """Say why the agent cannot start; None if it can, or if the artifact has an init instead."""

    def first(path: str) -> Problem | None:
        found = problems(kernel, tree, [path], Context(architecture))
        return next((each for each in found if each.is_certain), None)

    if format_.needs_init and not has_built_in(tree):
        return None
    starts_init_of_disk = not format_.needs_init and not kernel.is_volant
    if starts_init_of_disk and not all(first(path.decode()) for path in format_.init_paths):
        return None
    agent = paths.AGENT.decode()
    if _agent(tree) is None:
        return Problem(
            f"it has no agent {agent}", "Add [agent] to fledge.toml, and build it again."
        )
    return first(agent)


def _agent(tree: Tree) -> Node | None:
    return tree.get(paths.AGENT, follow=True)


def _check_agent_folder(config: Config, tree: Tree) -> None:
    """Raise `ConfigError` if the agent cannot copy itself to the disk.

    It does so before the disk is the root, so that symlinks can lead out of the disk.
    """
    outside, mount_point = Tree(tree.mtime_ns), b"/mnt/volant-root"
    outside.add(b"/mnt", Directory(mode=0o755, children={b"volant-root": tree.root}))
    for path in (b"/usr", b"/usr/local", b"/usr/local/bin"):
        node = tree.get(path)
        if node is None:
            return  # the agent makes it
        reached = outside.get(mount_point + path, follow=True)
        if isinstance(reached, Directory) and reached is tree.get(path, follow=True):
            continue
        shown = printable(path)
        if isinstance(node, Symlink):
            target = printable(node.target)
            raise ConfigError(
                f"{config.path}: the artifact would not boot: {shown} is a symlink to {target},"
                " which the agent follows while the disk is not the root yet: it finds no folder"
                f" there to copy itself to, as {printable(AGENT_COPY)}",
                f"Make {shown} a folder, or a relative symlink to a folder of the disk.",
            )
        raise ConfigError(
            f"{config.path}: the artifact would not boot: {shown} is not a folder, and the agent"
            f" copies itself to {printable(AGENT_COPY)}",
            f"Make {shown} a folder.",
        )


def _check_room(config: Config, tree: Tree) -> None:
    """Raise `ConfigError` if the agent, which copies itself to a disk at boot, has no room."""
    agent, free = _agent(tree), config.format.free_space(0)
    if not isinstance(agent, File) or free is None:
        return
    needed = max(content_size(agent.content), AGENT_SIZE) + AGENT_ROOM
    if free < needed:
        raise ConfigError(
            f"{config.path}: [filesystem] size_buffer_mb leaves {free >> 20} MiB free, but the"
            f" agent copies itself to the disk when it boots and needs {-(-needed >> 20)} MiB",
            f"Set size_buffer_mb to {-(-needed >> 20)} or more, or leave it out.",
        )
