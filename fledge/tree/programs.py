"""Whether a program of a tree can run: its format, its interpreter, its loader and libraries.

Linux runs an ELF file for its architecture, with the loader that it names (System V ABI, "Program
Interpreter"), or a script that begins with ``#!`` (fs/binfmt_script.c). The loader looks for the
shared libraries (ld.so(8); musl has its own list of folders). env(1) and busybox run the program or
applet that their arguments name, so commands are looked at with their arguments.
"""

from __future__ import annotations

import posixpath
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from fledge.errors import MalformedError
from fledge.report import counted
from fledge.tree import elf
from fledge.tree.applets import MAX_BUSYBOX_SIZE, applets
from fledge.tree.content import content_size, read_content, read_range
from fledge.tree.names import printable
from fledge.tree.nodes import Directory, File, Node, Tree

MAX_LINE = 256
"""Bytes of a file in which the kernel looks for a line with ``#!`` (BINPRM_BUF_SIZE)."""

MAX_INTERPRETERS = 5
"""Scripts that may run each other (exec_binprm in fs/exec.c)."""

COMPATIBLE = {("amd64", "386"): "IA32_EMULATION", ("arm64", "arm"): "COMPAT"}
"""The option with which a kernel for the first architecture runs programs for the second."""

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""The PATH of a container whose image sets none (Docker, containerd)."""

PATH_OF_GLIBC = "/bin:/usr/bin"
"""Where execvp(3) of glibc looks if there is no PATH, as for the init of a kernel."""

PATH_OF_MUSL = "/usr/local/bin:/bin:/usr/bin"
"""The same of musl."""

SHELLS = (b"/bin/sh", b"/usr/bin/sh", b"/bin/ash")

MAX_LIBRARIES = 1000
"""Libraries of a program that are looked for."""

MAX_NAMED = 6
"""Files that are named in an advice."""

BUILT_INTO_MUSL = re.compile(rb"lib(?:c|pthread|rt|m|dl|util|xnet)\.so")
"""Libraries that musl's loader is itself (load_library in ldso/dynlink.c)."""

LIBRARY_FOLDERS = (b"/lib", b"/usr/lib", b"/lib64", b"/usr/lib64", b"/usr/local/lib")
"""Folders that a loader looks in without being told to."""


class Problem(msgspec.Struct, frozen=True):
    """Why Linux cannot run a program."""

    text: str
    """What is wrong. It names the missing file."""
    advice: str
    """What to do about it: a sentence."""
    is_certain: bool = True
    """False: the program may run all the same, for reasons that a tree does not show."""
    option: str = ""
    """The option of the kernel with which it is no problem, without ``CONFIG_``."""


class Context(msgspec.Struct, frozen=True):
    """What a program is started with."""

    architecture: str = ""
    """That of the artifact (OCI name). Empty: any."""
    environment: Mapping[str, str] = {}
    folder: str = "/"
    """The working folder."""


def find(tree: Tree, name: str, search_path: str, folder: str) -> str | None:
    """Return the absolute path of a program as execvp(3) finds it; None if it is nowhere.

    ``folder`` is the working folder, where a name with a slash starts.
    """
    if "/" in name:
        candidates = [posixpath.join("/", folder, name)]
    else:
        folders = (search_path or DEFAULT_PATH).split(":")
        candidates = [posixpath.join("/", folder, each, name) for each in folders]
    for candidate in candidates:
        if _is_executable(_node(tree, _bytes(candidate))):
            return posixpath.normpath(candidate) if "/.." not in candidate else candidate
    return None


def problems(tree: Tree, command: Sequence[str], context: Context) -> Iterator[Problem]:
    """Yield why Linux cannot run a command: the path of a program, and its arguments."""
    return _problems(tree, [_bytes(each) for each in command], context, MAX_INTERPRETERS)


def _problems(tree: Tree, command: list[bytes], context: Context, depth: int) -> Iterator[Problem]:
    path = posixpath.join(b"/", _bytes(context.folder), command[0])
    shown, node = printable(command[0]), _node(tree, path)
    if node is None:
        yield Problem(f"{shown} does not exist", f"Add {shown} with [mappings].")
    elif not isinstance(node, File):
        yield Problem(f"{shown} is not a file", "Name a program.")
    elif not node.mode & 0o111:
        yield Problem(f"{shown} is not executable", "Make it executable (chmod +x).")
    else:
        start = read_range(node.content, 0, MAX_LINE)
        if start.startswith(b"#!"):
            yield from _script_problems(tree, command, start, context, depth)
        elif start.startswith(elf.ELF_MAGIC):
            yield from _binary_problems(tree, path, node, context)
            yield from _argument_problems(tree, command, node, context, depth)
        else:
            yield Problem(
                f"{shown} is neither an ELF program nor a script that begins with #!",
                "Begin a script with #!/bin/sh, for example.",
            )


def _script_problems(
    tree: Tree, command: list[bytes], start: bytes, context: Context, depth: int
) -> Iterator[Problem]:
    shown = printable(command[0])
    line, newline, _ = start[2:].partition(b"\n")
    text = line.strip(b" \t")
    name, _, argument = (
        each.partition(b"\0")[0] for each in re.split(rb"([ \t]+|$)", text, maxsplit=1)
    )
    if not newline and len(start) == MAX_LINE and not argument:
        yield Problem(
            f"the first line of {shown} is longer than the {MAX_LINE} bytes that Linux reads",
            "Shorten it.",
        )
    elif line.endswith(b"\r"):
        yield Problem(
            f"the first line of {shown} ends with a carriage return, as Windows writes it: Linux"
            f" runs {printable(text)}",
            "Save it with the line ends of Unix (dos2unix).",
        )
    elif not name:
        yield Problem(
            f"the first line of {shown} names no interpreter",
            "Begin it with #!/bin/sh, for example.",
        )
    elif depth == 0:
        yield Problem(
            f"{shown} is a script of a script, more than {MAX_INTERPRETERS} times",
            "Name an ELF program in its first line.",
        )
    else:
        # All that follows the interpreter is one argument, even with spaces in it.
        run = [name, *filter(None, [argument]), *command]
        for found in _problems(tree, run, context, depth - 1):
            advice = found.advice
            if tree.get(posixpath.join(b"/", name), follow=True) is None:
                advice = _instead_of(tree, run, context)
            needs = f"{shown} needs {printable(name)}, but {found.text}"
            yield msgspec.structs.replace(found, text=needs, advice=advice)


def _instead_of(tree: Tree, run: list[bytes], context: Context) -> str:
    """Say what to do about an interpreter that is missing, and about the one that env(1) runs."""
    missing = [printable(run[0])]
    if posixpath.basename(run[0]) == b"env" and (started := _started_by_env(run, context)):
        name, search_path = _text(started[0][0]), started[1] or DEFAULT_PATH
        if found := find(tree, name, search_path, context.folder):
            return f"Begin it with #!{found}."
        missing.append(printable(started[0][0]))
    return f"Add {' and '.join(missing)} with [mappings]{_or_shell(tree)}."


def _or_shell(tree: Tree) -> str:
    shell = next((each for each in SHELLS if _is_executable(tree.get(each, follow=True))), None)
    return f", or use an interpreter that is there, such as #!{printable(shell)}" if shell else ""


def _argument_problems(
    tree: Tree, command: list[bytes], program: File, context: Context, depth: int
) -> Iterator[Problem]:
    """Look at what a program that runs others is to run: env(1), or an applet of busybox."""
    path = posixpath.join(b"/", _bytes(context.folder), command[0])
    real = posixpath.basename(tree.real_path(path) or path)
    names = {posixpath.basename(path), real}
    has_applets: list[bytes] = []
    if real.startswith(b"busybox") or program is tree.get(b"/bin/busybox", follow=True):
        if content_size(program.content) <= MAX_BUSYBOX_SIZE:
            has_applets = applets(b"".join(read_content(program.content)))
        if posixpath.basename(path).startswith(b"busybox"):
            command = command[1:]
        applet = posixpath.basename(command[0]) if command else b""
        if not applet or applet.startswith((b"-", b"busybox")):
            return
        if has_applets and applet not in has_applets:
            yield Problem(
                f"{printable(path)} is busybox, which has no applet {printable(applet)}",
                f"Add the program {printable(applet)} with what it needs"
                f"{_or_shell(tree) if b'sh' in has_applets else ''}.",
            )
            return
        names = {applet}
    if b"env" in names:
        yield from _env_problems(tree, command, program, has_applets, context, depth)


def _env_problems(
    tree: Tree,
    command: list[bytes],
    env: File,
    has_applets: list[bytes],
    context: Context,
    depth: int,
) -> Iterator[Problem]:
    if has_applets and any(each.startswith((b"-S", b"--s")) for each in command[1:2]):
        yield Problem(
            f"{printable(command[0])} is that of busybox, which has no option -S",
            "Name the interpreter itself in the first line of the script.",
        )
        return
    started = _started_by_env(command, context)
    if started is None or depth == 0:
        return
    run, search_path = started
    name = _text(run[0])
    if search_path is None:
        search_path = _default_path(env)
    found = find(tree, name, search_path, context.folder)
    if found:
        for each in _problems(tree, [_bytes(found), *run[1:]], context, depth - 1):
            yield msgspec.structs.replace(
                each, text=f"{printable(run[0])}, which it starts, cannot run: {each.text}"
            )
    elif run[0] not in has_applets:
        shown, where = printable(run[0]), f" in PATH={search_path}" * ("/" not in name)
        hint = f"Add {shown}, with what it needs, to a folder of that PATH{_or_shell(tree)}."
        elsewhere = "/" not in name and find(tree, name, DEFAULT_PATH, context.folder)
        if elsewhere:
            hint = f"Begin the script with #!{elsewhere}."
        elif b" " in run[0]:
            hint = (
                "Linux hands over all that follows env as one argument. Name the interpreter"
                " itself in the first line of the script, or use env -S."
            )
        yield Problem(f"env does not find {shown}{where}", hint)


def _default_path(program: File) -> str:
    """Return where a program looks for others if there is no PATH, which its C library decides."""
    try:
        loader = elf.read(program.content).loader
    except MalformedError:
        loader = b""
    return PATH_OF_GLIBC if loader and b"musl" not in loader else PATH_OF_MUSL


_ENV_SPLIT = re.compile(rb"-([iv0]*)S(.*)|--split-string(?:=(.*))?", re.DOTALL)
"""The option of env(1) whose text is split into arguments."""
_ENV_EMPTY = re.compile(rb"-|-[v0]*i[v0]*|--ignore-environment")
"""Options of env(1) that leave no variable."""
_ENV_NAMED = re.compile(rb"(?:-([aCu])|--(argv0|chdir|unset)=)(.+)")
"""Options of env(1) with their value."""
_ENV_OTHER = re.compile(rb"-[v0]+|--null|--debug|--")


def _started_by_env(
    command: list[bytes], context: Context
) -> tuple[list[bytes], str | None] | None:
    """Return the command that env(1) starts, and the PATH in which it looks; None if there is none.

    Returns None if it starts nothing, or what it starts cannot be seen here.
    """
    left, search_path = command[1:], context.environment.get("PATH")
    while left:
        argument = left.pop(0)
        if split := _ENV_SPLIT.fullmatch(argument):
            text = split[2] or split[3] or (left.pop(0) if left else b"")
            try:
                left[:0] = map(_bytes, shlex.split(_text(text)))
            except ValueError:
                return None
            if b"$" in text or b"\\" in text:  # variables and escapes of its own
                return None
            search_path = None if b"i" in (split[1] or b"") else search_path
            continue
        if argument in (b"-a", b"-C", b"-u", b"--argv0", b"--chdir", b"--unset") and left:
            argument += (b"=" if argument.startswith(b"--") else b"") + left.pop(0)
        named = _ENV_NAMED.fullmatch(argument)
        if _ENV_EMPTY.fullmatch(argument):
            search_path = None
        elif named:
            is_path = (named[1] or named[2]) in (b"u", b"unset") and named[3] == b"PATH"
            search_path = None if is_path else search_path
        elif b"=" in argument and not argument.startswith(b"-"):
            variable, _, value = argument.partition(b"=")
            search_path = _text(value) if variable == b"PATH" else search_path
        elif argument.startswith(b"-"):
            if not _ENV_OTHER.fullmatch(argument):
                return None
        else:
            return [argument, *left], search_path
    return None


def _binary_problems(tree: Tree, path: bytes, file: File, context: Context) -> Iterator[Problem]:
    shown, architecture = printable(path), context.architecture
    try:
        binary = elf.read(file.content)
    except MalformedError as error:
        yield Problem(f"{shown} is a damaged program: {error}", "Copy it again.")
        return
    if architecture not in ("", binary.architecture):
        option = COMPATIBLE.get((architecture, binary.architecture), "")
        yield Problem(
            f"{shown} is for {binary.architecture}, not for {architecture}",
            f"Use one for {architecture}.",
            option=option,
        )
    if not binary.loader:
        return
    found = tree.get(binary.loader, follow=True)
    wrong = _unfit(found, binary) if _is_executable(found) else None
    if wrong:
        yield Problem(
            f"{shown} needs the loader {printable(binary.loader)}, which {wrong}",
            f"Use the {printable(binary.loader)} that the program was made for, or link the program"
            " statically.",
        )
        return
    needed = [] if _is_executable(found) else [_Needed(path, binary.loader, "the loader ")]
    libraries = list(_missing_libraries(tree, path, binary, context))
    needed += [each for each in libraries if not (each.wrong or each.elsewhere)]
    if needed:
        yield _missing(needed)
    for each in libraries:
        if each.wrong:
            yield Problem(
                f"{printable(each.user)} needs {printable(each.name)}, but {each.wrong}",
                f"Replace it by the {printable(each.name)} that the program was made for, or link"
                " the program statically.",
            )
    if hidden := [each for each in libraries if each.elsewhere]:
        first, more = hidden[0], len(hidden) - 1
        others = f" (and {counted(more, 'other library')} like it)" if more else ""
        yield Problem(
            f"{printable(first.user)} needs {printable(first.name)}, which is at"
            f" {printable(first.elsewhere)}{others}, where its loader looks only if it is told to",
            "Name the folder in LD_LIBRARY_PATH of the environment, or move the library.",
            is_certain=False,
        )


def _unfit(node: Node | None, user: elf.Binary) -> str | None:
    """Say why a loader or library cannot serve a program; None if it can."""
    try:
        found = elf.read(node.content) if isinstance(node, File) else None
    except MalformedError as error:
        return f"is damaged: {error}"
    if found is None or found.architecture == user.architecture:
        return None
    return f"is for {found.architecture}, not for {user.architecture}"


class _Needed(msgspec.Struct, frozen=True):
    """A file that a program needs and its loader does not find."""

    user: bytes
    name: bytes
    kind: str = ""
    wrong: str = ""
    """What is wrong with the one that is found."""
    elsewhere: bytes = b""
    """Where it is instead."""


def _missing(needed: list[_Needed]) -> Problem:
    """Describe the first of the files that are missing; name all of them in the advice."""
    first, names = needed[0], [printable(each.name) for each in needed]
    if len(names) > MAX_NAMED:
        names[MAX_NAMED:] = [counted(len(names) - MAX_NAMED, "other library")]
    listed = " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
    return Problem(
        f"{printable(first.user)} needs {first.kind}{printable(first.name)}, which is missing",
        f"Add {listed} with [mappings], or link the program statically.",
    )


def _missing_libraries(
    tree: Tree, path: bytes, binary: elf.Binary, context: Context
) -> Iterator[_Needed]:
    """Yield each shared library that a program needs, directly or not, and does not get."""
    folders = [*_told_folders(context), *LIBRARY_FOLDERS, *_configured_folders(tree)]
    # Distributions make a loader that looks in its own folder (Debian's have the architecture).
    if loader := tree.real_path(binary.loader):
        own = posixpath.dirname(loader)
        folders += [own, b"/usr" + own, own.removeprefix(b"/usr")]
    built_in = b"/ld-musl-" in binary.loader
    real = tree.real_path(path) or path
    seen: set[bytes] = set()
    everywhere: dict[bytes, list[bytes]] | None = None
    pending = [(real, binary)]
    while pending and len(seen) < MAX_LIBRARIES:
        user, needing = pending.pop()
        origins = [*needing.run_path(user), *binary.run_path(real), *folders]
        for name in needing.libraries:
            if name in seen or (built_in and BUILT_INTO_MUSL.fullmatch(name)):
                continue
            seen.add(name)
            places = [name] if b"/" in name else [posixpath.join(each, name) for each in origins]
            files = list(filter(None, (_file_at(tree, place) for place in dict.fromkeys(places))))
            if fit := next((each for each in files if _unfit(each[1], binary) is None), None):
                pending.append((fit[0], elf.read(fit[1].content)))
                continue
            everywhere = _libraries(tree) if everywhere is None else everywhere
            tried = {tree.real_path(each) for each, _ in files}
            others = everywhere.get(name.rpartition(b"/")[2], [])
            elsewhere = next((each for each in others if tree.real_path(each) not in tried), b"")
            wrong = f"{printable(files[0][0])} {_unfit(files[0][1], binary)}" if files else ""
            yield _Needed(user, name, wrong="" if elsewhere else wrong, elsewhere=elsewhere)


def _told_folders(context: Context) -> list[bytes]:
    """Return the folders in which the environment tells a loader to look (ld.so(8))."""
    told = context.environment.get("LD_LIBRARY_PATH", "")
    return [_bytes(each) for each in re.split("[:;]", told) if each]


def _libraries(tree: Tree) -> dict[bytes, list[bytes]]:
    """Return the paths of all that may be a library, by name."""
    found: dict[bytes, list[bytes]] = {}
    for path, node in tree.walk():
        name = path.rpartition(b"/")[2]
        if b".so" in name and not isinstance(node, Directory):
            found.setdefault(name, []).append(b"/" + path)
    return found


def _file_at(tree: Tree, path: bytes) -> tuple[bytes, File] | None:
    node = _node(tree, path)
    return (path, node) if isinstance(node, File) else None


def _node(tree: Tree, path: bytes) -> Node | None:
    """Return the node that Linux finds at a path, where ``..`` may come after a symlink."""
    found = tree.locate(path)
    return found[1] if found else None


def _configured_folders(tree: Tree) -> Iterator[bytes]:
    """Yield the folders that a distribution adds: ld.so.conf(5), or musl's list of paths."""
    etc = tree.get(b"/etc", follow=True)
    names = etc.children if isinstance(etc, Directory) else {}
    files = [
        b"/etc/" + name for name in names if re.fullmatch(rb"ld\.so\.conf|ld-musl-.*\.path", name)
    ]
    more = tree.get(b"/etc/ld.so.conf.d", follow=True)
    if isinstance(more, Directory):
        files += [b"/etc/ld.so.conf.d/" + name for name in more.children if name.endswith(b".conf")]
    for path in files:
        node = tree.get(path, follow=True)
        if isinstance(node, File):
            text = read_range(node.content, 0, 1 << 16)
            yield from (each for each in re.split(rb"[\s:,]+", text) if each.startswith(b"/"))


def _is_executable(node: Node | None) -> bool:
    return isinstance(node, File) and bool(node.mode & 0o111)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")
