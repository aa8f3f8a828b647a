"""openssl, which makes keys and signatures and checks ours."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.support.daemons import need

GENERATE = {
    "ecdsa-p256": ("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"),
    "ed25519": ("genpkey", "-algorithm", "ed25519"),
}


def run(*arguments: str | Path, data: bytes = b"") -> bytes:
    need("openssl")
    done = subprocess.run(["openssl", *arguments], input=data, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def key(folder: Path, kind: str, name: str = "other") -> tuple[Path, Path]:
    """Make a private key and its public key."""
    private, public = folder / f"{name}.key", folder / f"{name}.pub"
    run(*GENERATE[kind], "-out", private)
    run("pkey", "-in", private, "-pubout", "-out", public)
    return private, public


def sign(private: Path, kind: str, message: bytes) -> bytes:
    if kind == "ecdsa-p256":
        return run("dgst", "-sha256", "-sign", private, data=message)
    file = private.with_suffix(".message")
    file.write_bytes(message)
    return run("pkeyutl", "-sign", "-rawin", "-inkey", private, "-in", file)


def verifies(public: Path, kind: str, message: bytes, signature: bytes) -> bool:
    file, sig = public.with_suffix(".message"), public.with_suffix(".sig")
    file.write_bytes(message)
    sig.write_bytes(signature)
    if kind == "ecdsa-p256":
        command: list[str | Path] = ["dgst", "-sha256", "-verify", public, "-signature", sig, file]
    else:
        command = ["pkeyutl", "-verify", "-rawin", "-pubin", "-inkey", public, "-in", file]
        command += ["-sigfile", sig]
    done = subprocess.run(["openssl", *command], capture_output=True, check=False)
    return done.returncode == 0
