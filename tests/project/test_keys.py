"""Keys: those of openssl, those that are not read, and commands that sign."""

from __future__ import annotations

import base64
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fledge.errors import ConfigError, CorruptError, FledgeError, HostError
from fledge.host.settings import Settings
from fledge.project import keys
from fledge.project.keys import KeyType, Signer
from tests.support import openssl

KINDS: tuple[KeyType, ...] = ("ecdsa-p256", "ed25519")
MESSAGE = b"a message"


def never() -> str:
    raise AssertionError("nobody is asked")


def load(source: str | Path, passphrase: Callable[[], str] = never) -> Signer:
    return keys.load_signer(str(source), None, passphrase, Settings())


def make(folder: Path, kind: KeyType = "ed25519", passphrase: str = "") -> tuple[Path, Path]:
    key = keys.generate(kind)
    private, public = folder / "own.key", folder / "own.pub"
    private.write_bytes(keys.private_pem(key, passphrase))
    public.write_bytes(keys.public_pem(key.public))
    return private, public


def command(folder: Path, script: str) -> str:
    """The source for a program in Python, which has the private key in ``own.key``."""
    file = folder / "signer.py"
    file.write_text(
        "import base64, sys\nfrom pathlib import Path\nfrom fledge.host.settings import Settings\n"
        "from fledge.project.keys import load_signer\n"
        f"key = load_signer({str(folder / 'own.key')!r}, None, input, Settings())\n{script}\n"
    )
    return f"exec:{sys.executable} {file}"


@pytest.mark.parametrize("kind", KINDS)
def test_signatures_are_the_same_every_time(tmp_path: Path, kind: KeyType) -> None:
    private, public = make(tmp_path, kind)
    signature = load(private).sign(MESSAGE)
    assert load(private).sign(MESSAGE) == signature
    key = keys.load_public(public)
    assert key.digest == load(private).public.digest
    assert key.verifies(MESSAGE, signature)
    assert not key.verifies(b"another", signature)
    for wrong in (b"", signature[:-1], signature + b"\0", bytes(64), b"\x30" * 70, b"x" * 10_000):
        assert not key.verifies(MESSAGE, wrong)


@pytest.mark.real
@pytest.mark.parametrize("kind", KINDS)
def test_openssl_agrees(tmp_path: Path, kind: KeyType) -> None:
    private, public = make(tmp_path, kind)
    signature = load(private).sign(MESSAGE)
    assert openssl.verifies(public, kind, MESSAGE, signature)
    assert not openssl.verifies(public, kind, MESSAGE + b"x", signature)
    theirs, their_public = openssl.key(tmp_path, kind)
    made = openssl.sign(theirs, kind, MESSAGE)
    assert keys.load_public(their_public).verifies(MESSAGE, made)
    assert load(theirs).public.digest == keys.load_public(their_public).digest
    assert not keys.load_public(public).verifies(MESSAGE, made)


@pytest.mark.real
def test_encrypted_keys_of_both_sides(tmp_path: Path) -> None:
    private, public = make(tmp_path, "ecdsa-p256", "päss word")
    plain = tmp_path / "plain.key"
    openssl.run("pkey", "-in", private, "-passin", "pass:päss word", "-out", plain)
    assert load(plain).public.digest == keys.load_public(public).digest
    for options in (["-scrypt"], ["-v2", "aes-256-cbc"]):
        other = tmp_path / "other.key"
        openssl.run("pkcs8", "-topk8", "-in", plain, "-passout", "pass:x", "-out", other, *options)
        assert load(other, lambda: "x").public.digest == keys.load_public(public).digest
        with pytest.raises(ConfigError, match="cannot be decrypted"):
            load(other, lambda: "y")


@pytest.mark.real
def test_keys_that_are_not_pkcs8(tmp_path: Path) -> None:
    """SEC 1, with the parameters of the curve in front, and encrypted in the old way."""
    plain, encrypted = tmp_path / "sec1.key", tmp_path / "encrypted.key"
    openssl.run("ecparam", "-name", "prime256v1", "-genkey", "-out", plain)
    assert b"EC PARAMETERS" in plain.read_bytes()
    openssl.run("ec", "-in", plain, "-aes256", "-passout", "pass:x", "-out", encrypted)
    assert b"Proc-Type: 4,ENCRYPTED" in encrypted.read_bytes()
    assert load(encrypted, lambda: "x").public.digest == load(plain).public.digest
    with pytest.raises(ConfigError, match="cannot be decrypted"):
        load(encrypted, lambda: "y")


@pytest.mark.real
def test_algorithms_that_are_not_used(tmp_path: Path) -> None:
    for name, options in {
        "rsa": ("RSA", "rsa_keygen_bits:2048"),
        "p384": ("EC", "ec_paramgen_curve:P-384"),
        "secp256k1": ("EC", "ec_paramgen_curve:secp256k1"),
    }.items():
        private, public = tmp_path / f"{name}.key", tmp_path / f"{name}.pub"
        openssl.run("genpkey", "-algorithm", options[0], "-pkeyopt", options[1], "-out", private)
        openssl.run("pkey", "-in", private, "-pubout", "-out", public)
        for read, file in ((load, private), (keys.load_public, public)):
            with pytest.raises(ConfigError, match="neither an Ed25519 key nor one of ECDSA"):
                read(file)


def test_a_key_in_a_variable(tmp_path: Path) -> None:
    private, _ = make(tmp_path)
    settings = Settings({"SIGNING_KEY": private.read_text(), "EMPTY": ""})
    key = keys.load_signer("env:SIGNING_KEY", None, never, settings)
    assert key.public.digest == load(private).public.digest
    for source, problem in {
        "env:OTHER": "the variable OTHER is not set",
        "env:EMPTY": "the variable EMPTY is not set",
        "env:": "not followed by the name of a variable",
        "env:MC4CAQAwBQYDK2VwBCIEIA==": "not followed by the name of a variable",
    }.items():
        with pytest.raises(ConfigError, match=problem) as raised:
            keys.load_signer(source, None, never, settings)
        assert "MC4C" not in str(raised.value)


def label(name: str, body: str = "AAAA") -> str:
    return f"-----BEGIN {name}-----\n{body}\n-----END {name}-----\n"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "has no key in PEM"),
        ("\0\xff", "has no key in PEM"),
        (label("PRIVATE KEY")[:-10], "has no key in PEM"),
        ("x" * 20_000, "has over 16384 bytes"),
        (label("PRIVATE KEY") * 2, "has 2 keys"),
        (label("CERTIFICATE"), 'is a "CERTIFICATE", which fledge does not read'),
        (label("ENCRYPTED SIGSTORE PRIVATE KEY"), "cosign import-key-pair"),
        (label("ENCRYPTED COSIGN PRIVATE KEY"), "cosign import-key-pair"),
        (label("OPENSSH PRIVATE KEY"), 'is a "OPENSSH PRIVATE KEY", which'),
        (label("RSA PRIVATE KEY"), 'is a "RSA PRIVATE KEY", which'),
    ],
)
def test_files_that_are_no_keys(tmp_path: Path, text: str, problem: str) -> None:
    file = tmp_path / "file"
    file.write_text(text)
    for read in (load, keys.load_public):
        with pytest.raises(ConfigError) as raised:
            read(file)
        assert problem in str(raised.value)


def test_damaged_keys(tmp_path: Path) -> None:
    private, public = make(tmp_path)
    body = base64.b64encode(b"0.\2\1\0" + bytes(43)).decode()
    for name in ("PRIVATE KEY", "EC PRIVATE KEY", "ENCRYPTED PRIVATE KEY"):
        private.write_text(label(name, body))
        with pytest.raises(ConfigError, match=r"is damaged, or no|cannot be decrypted"):
            load(private, lambda: "x")
    public.write_text(label("PUBLIC KEY", body))
    with pytest.raises(ConfigError, match="is damaged, or no public key"):
        keys.load_public(public)


def test_the_wrong_half(tmp_path: Path) -> None:
    private, public = make(tmp_path)
    with pytest.raises(ConfigError, match=r"own.pub is a public key, which cannot sign"):
        load(public)
    with pytest.raises(ConfigError, match=r"own.key is a private key; name the public key"):
        keys.load_public(private)
    with pytest.raises(ConfigError, match="could not be read: no such file"):
        load(tmp_path / "missing")
    other = keys.generate("ed25519")
    public.write_bytes(keys.public_pem(other.public))
    with pytest.raises(ConfigError, match=r"own\.pub does not belong to the private key"):
        keys.load_signer(str(private), public, never, Settings())


def test_a_key_on_the_command_line_is_not_repeated(tmp_path: Path) -> None:
    private, _ = make(tmp_path)
    text = private.read_text()
    for source in (text, text.replace("\n", " "), f"env:{text}", f"exec:{text}"):
        with pytest.raises(ConfigError, match="--key has a key in it") as raised:
            load(source)
        assert text.splitlines()[1] not in str(raised.value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "output", ["{}", "base64.encodebytes({})", "base64.b64encode({}) + b'\\n\\n'"]
)
@pytest.mark.slow
def test_a_command_signs(tmp_path: Path, kind: KeyType, output: str) -> None:
    _, public = make(tmp_path, kind)
    write = output.format("key.sign(sys.stdin.buffer.read())")
    source = command(tmp_path, f"sys.stdout.buffer.write({write})")
    signer = keys.load_signer(source, public, never, Settings())
    assert keys.load_public(public).verifies(MESSAGE, signer.sign(MESSAGE))
    # Longer than a pipe.
    assert keys.load_public(public).verifies(MESSAGE * 50_000, signer.sign(MESSAGE * 50_000))


@pytest.mark.parametrize(
    ("script", "error", "problem"),
    [
        ("pass", CorruptError, "printed is no signature by"),
        ("sys.stdout.buffer.write(bytes(64))", CorruptError, "printed is no signature by"),
        ("sys.stdout.buffer.write(key.sign(b'other'))", CorruptError, "is no signature by"),
        ("sys.exit(3)", FledgeError, "did not sign: exit status 3"),
        ("import os; os.kill(os.getpid(), 9)", FledgeError, "did not sign: exit status -9"),
    ],
)
@pytest.mark.slow
def test_a_command_fails(
    tmp_path: Path, script: str, error: type[FledgeError], problem: str
) -> None:
    _, public = make(tmp_path)
    signer = keys.load_signer(command(tmp_path, script) + " --pin 1234", public, never, Settings())
    with pytest.raises(error, match=re.escape(problem)) as raised:
        signer.sign(MESSAGE)
    assert "1234" not in str(raised.value)


def test_commands_that_cannot_run(tmp_path: Path) -> None:
    private, public = make(tmp_path)
    for source, problem in {
        "exec:": "--key exec: names no command",
        "exec:'": "cannot be split: no closing quotation",
    }.items():
        with pytest.raises(ConfigError, match=problem):
            keys.load_signer(source, public, never, Settings())
    with pytest.raises(ConfigError, match=r"which key does kms sign with\?"):
        load("exec:kms sign")
    for program, problem in {"no-such-program": "is not installed", str(private): "denied"}.items():
        signer = keys.load_signer(f"exec:{program}", public, never, Settings())
        with pytest.raises(HostError, match=problem):
            signer.sign(MESSAGE)


def test_a_key_is_not_in_its_repr(tmp_path: Path) -> None:
    key = keys.generate("ed25519")
    assert repr(key) == "PrivateKey('the new key')"
    assert repr(keys.PrivateKey(key.key, "x")) == "PrivateKey('x')"
