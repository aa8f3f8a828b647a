"""Whether a program of a tree can run: its format, its interpreter, its loader and libraries.

Linux runs an ELF file for its architecture, with the loader that it names (System V ABI, "Program
Interpreter"), or a script that begins with ``#!`` (fs/binfmt_script.c). The loader looks for the
shared libraries (ld.so(8); musl has its own list of folders).
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator

import msgspec

from fledge.errors import MalformedError
from fledge.tree import elf
from fledge.tree.content import read_range
from fledge.tree.names import printable
from fledge.tree.nodes import Directory, File, Node, Tree

MAX_LINE = 256
"""Bytes of a file in which the kernel looks for a line with ``#!`` (BINPRM_BUF_SIZE)."""

MAX_INTERPRETERS = 5
"""Scripts that may run each other (exec_binprm in fs/exec.c)."""

COMPATIBLE = {("amd64", "386"), ("arm64", "arm")}
"""Pairs of a 64-bit architecture and the 32-bit one whose programs its kernels usually run."""

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""The PATH of a container whose image sets none (Docker, containerd)."""

MAX_LIBRARIES = 1000
"""Libraries of a program that are looked for."""

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
        if _is_executable(tree.get(candidate.encode(), follow=True)):
            return posixpath.normpath(candidate) if "/.." not in candidate else candidate
    return None


def problem(tree: Tree, path: str, architecture: str) -> Problem | None:
    """Say why Linux cannot run the program at ``path``; None if nothing stands against it.

    ``architecture`` is the one of the artifact (OCI name; empty: any).
    """
    return next(_problems(tree, path.encode(), architecture, MAX_INTERPRETERS), None)


def _problems(tree: Tree, path: bytes, architecture: str, depth: int) -> Iterator[Problem]:
    shown, node = printable(path), tree.get(path, follow=True)
    if node is None:
        yield Problem(f"{shown} does not exist", f"Add {shown} with [mappings].")
    elif not isinstance(node, File):
        yield Problem(f"{shown} is not a file", "Name a program.")
    elif not node.mode & 0o111:
        yield Problem(f"{shown} is not executable", "Make it executable (chmod +x).")
    else:
        start = read_range(node.content, 0, MAX_LINE)
        if start.startswith(b"#!"):
            yield from _script_problems(tree, path, start, architecture, depth)
        elif start.startswith(elf.ELF_MAGIC):
            yield from _binary_problems(tree, path, node, architecture)
        else:
            yield Problem(
                f"{shown} is neither an ELF program nor a script that begins with #!",
                "Begin a script with #!/bin/sh, for example.",
            )


def _script_problems(
    tree: Tree, path: bytes, start: bytes, architecture: str, depth: int
) -> Iterator[Problem]:
    shown = printable(path)
    line, newline, _ = start[2:].partition(b"\n")
    interpreter = re.match(rb"[ \t]*([^ \t\0]*)", line)
    name = interpreter[1] if interpreter else b""
    command = line.lstrip(b" \t")
    if not newline and len(start) == MAX_LINE and len(name) == len(command):
        yield Problem(
            f"the first line of {shown} is longer than the {MAX_LINE} bytes that Linux reads",
            "Shorten it.",
        )
    elif line.endswith(b"\r"):
        yield Problem(
            f"the first line of {shown} ends with a carriage return, as Windows writes it: Linux"
            f" runs {printable(command)}",
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
        for found in _problems(tree, b"/" + name.lstrip(b"/"), architecture, depth - 1):
            yield Problem(f"{shown} needs {printable(name)}, but {found.text}", found.advice)


def _binary_problems(tree: Tree, path: bytes, file: File, architecture: str) -> Iterator[Problem]:
    shown = printable(path)
    try:
        binary = elf.read(file.content)
    except MalformedError as error:
        yield Problem(f"{shown} is a damaged program: {error}", "Copy it again.")
        return
    runs_here = architecture in ("", binary.architecture)
    if not runs_here and (architecture, binary.architecture) not in COMPATIBLE:
        yield Problem(
            f"{shown} is for {binary.architecture}, not for {architecture}",
            f"Use one for {architecture}.",
        )
    if binary.loader:
        loader = tree.get(binary.loader, follow=True)
        if not _is_executable(loader):
            yield _missing(shown, "the loader ", binary.loader)
        yield from _missing_libraries(tree, path, binary)


def _missing(user: str, kind: str, name: bytes) -> Problem:
    return Problem(
        f"{user} needs {kind}{printable(name)}, which is missing",
        f"Add {printable(name)} with [mappings], or link the program statically.",
    )


def _missing_libraries(tree: Tree, path: bytes, binary: elf.Binary) -> Iterator[Problem]:
    """Name each shared library that a program needs, directly or not, and that is nowhere."""
    folders = [*LIBRARY_FOLDERS, *_configured_folders(tree)]
    built_in = b"/ld-musl-" in binary.loader
    seen: set[bytes] = set()
    everywhere: frozenset[bytes] | None = None
    pending = [(path, binary)]
    while pending and len(seen) < MAX_LIBRARIES:
        user, needing = pending.pop()
        origins = [*needing.run_path(user), *binary.run_path(path), *folders]
        for name in needing.libraries:
            if name in seen or (built_in and BUILT_INTO_MUSL.fullmatch(name)):
                continue
            seen.add(name)
            places = [name] if b"/" in name else [posixpath.join(each, name) for each in origins]
            found = next(filter(None, (_file_at(tree, place) for place in places)), None)
            if found is None:
                # A loader can be told of other folders in ways that cannot be seen here.
                everywhere = everywhere or frozenset(
                    each.rpartition(b"/")[2] for each, _ in tree.walk()
                )
                if name.rpartition(b"/")[2] not in everywhere:
                    yield _missing(printable(user), "", name)
                continue
            try:
                pending.append((found[0], elf.read(found[1].content)))
            except MalformedError:
                continue  # a linker script, which the loader skips


def _file_at(tree: Tree, path: bytes) -> tuple[bytes, File] | None:
    node = tree.get(path, follow=True)
    return (path, node) if isinstance(node, File) else None


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
