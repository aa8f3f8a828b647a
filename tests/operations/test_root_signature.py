"""Signatures of root hashes, as a kernel checks them."""

from __future__ import annotations

from pathlib import Path

import pytest

from fledge.errors import ConfigError
from fledge.host.settings import Settings
from fledge.operations import seal
from fledge.operations.build import Artifact, build
from fledge.operations.shared_cache import Sharing
from fledge.operations.sign import sign
from fledge.project import keys, pkcs7
from fledge.tree.digest import Digest
from tests.support import openssl, project
from tests.support.project import Fledge

pytestmark = pytest.mark.real


def make(folder: Path, certificate: Path | None = None, tables: str = "read_only = true") -> Path:
    toml = project.make_rootfs(folder)
    verity = "[verity]\n" + (f'certificate = "{certificate.name}"\n' if certificate else "")
    toml.write_text(toml.read_text().replace("size_buffer_mb = 8", f"{tables}\n{verity}"))
    return toml


def certify(folder: Path, kind: str = "ecdsa-p256", name: str = "own") -> tuple[Path, Path]:
    """Make a private key and its certificate."""
    private, _ = openssl.key(folder, kind, name)
    certificate = folder / f"{name}.crt"
    subject = f"/O=Example/CN={'n' * 60}"
    openssl.run("req", "-x509", "-key", private, "-subj", subject, "-out", certificate)
    return private, certificate


def check(artifact: Artifact, certificate: Path, folder: Path) -> None:
    """Let openssl check the signature of a root hash as the kernel does."""
    assert artifact.root_hash
    text = folder / "roothash"
    text.write_text(artifact.root_hash.hex)
    signature = seal.signature_path(artifact.path)
    openssl.run(
        *("smime", "-verify", "-binary", "-inform", "der", "-in", signature, "-content", text),
        *("-certfile", certificate, "-nointern", "-noverify"),
    )


def test_a_build_signs_it(tmp_path: Path) -> None:
    private, certificate = certify(tmp_path)
    toml, output = make(tmp_path, certificate), tmp_path / "x.img"
    sharing = Sharing(sign_with=str(private))
    artifact = build(toml, output, platform="linux/amd64", sharing=sharing)
    check(artifact, certificate, tmp_path)
    assert (tmp_path / "x.img.provenance.dsse.json").exists()


def test_the_structure_is_that_of_openssl(tmp_path: Path) -> None:
    """But for the parameters of an algorithm, and the signature itself."""
    private, certificate = certify(tmp_path)
    text = tmp_path / "text"
    text.write_text("ab" * 32)
    theirs = openssl.run(
        *("smime", "-sign", "-nocerts", "-noattr", "-binary", "-outform", "der"),
        *("-in", text, "-inkey", private, "-signer", certificate),
    )
    signer = keys.load_signer(str(private), None, lambda: "", Settings({}))
    loaded = pkcs7.load_certificate(certificate, signer)
    ours = pkcs7.sign_root_hash(Digest("ab" * 32), loaded, signer)
    assert objects(ours) == objects(theirs)


def objects(der: bytes) -> list[str]:
    """Return the depth, type and value of everything but NULLs and the signature."""
    found = []
    for line in openssl.run("asn1parse", "-inform", "der", data=der).decode().splitlines():
        place, _, rest = line.partition("l=")
        depth = place.partition("d=")[2].split()[0]
        kind = rest.split(":", 1)[-1] if ":" in rest else ""
        value = rest.partition(": ")[2].strip()
        if not value.startswith(("NULL", "OCTET STRING")):
            found.append(f"{depth} {value or kind}")
    return found


def test_a_program_signs_it(tmp_path: Path) -> None:
    private, certificate = certify(tmp_path)
    artifact = build(make(tmp_path), tmp_path / "x.img", platform="linux/amd64")
    key = f"exec:openssl dgst -sha256 -sign {private}"
    public = private.with_suffix(".pub")
    sign(artifact.path, key, public_key=public, certificate=certificate)
    check(artifact, certificate, tmp_path)


def test_the_command_line(tmp_path: Path, fledge: Fledge) -> None:
    private, certificate = certify(tmp_path)
    artifact = build(make(tmp_path), tmp_path / "x.img", platform="linux/amd64")
    done = fledge("sign", "x.img", "--key", private, "--certificate", certificate)
    assert done.code == 0, done.err
    check(artifact, certificate, tmp_path)


def test_the_signature_of_an_older_build_goes(tmp_path: Path) -> None:
    private, certificate = certify(tmp_path)
    toml, output = make(tmp_path, certificate), tmp_path / "x.img"
    sharing = Sharing(sign_with=str(private))
    build(toml, output, platform="linux/amd64", sharing=sharing)
    build(toml, output, platform="linux/amd64")
    assert seal.signature_path(output).exists(), "the root hash is the same"
    (tmp_path / "payload/webserver.yaml").write_bytes(b"port: 81\n")
    build(toml, output, platform="linux/amd64")
    assert not seal.signature_path(output).exists()


def test_certificates_that_cannot_be_used(tmp_path: Path) -> None:
    private, _ = certify(tmp_path)
    _, other = certify(tmp_path, name="other")
    edwards, ed25519 = certify(tmp_path, "ed25519", "edwards")
    (tmp_path / "text").write_text("text")
    for key, certificate, problem in (
        (private, other, "is not a certificate of"),
        (edwards, ed25519, "no kernel checks"),
        (private, tmp_path / "text", "is not an X.509 certificate"),
        (private, tmp_path / "nothing", "no such file"),
    ):
        toml = make(tmp_path, certificate)
        with pytest.raises(ConfigError, match=problem):
            build(toml, tmp_path / "x.img", sharing=Sharing(sign_with=str(key)))
        assert not (tmp_path / "x.img").exists()


def test_what_is_not_sealed(tmp_path: Path) -> None:
    private, certificate = certify(tmp_path)
    toml = make(tmp_path)
    toml.write_text(toml.read_text().replace("[verity]\n", ""))
    artifact = build(toml, tmp_path / "x.img", platform="linux/amd64")
    with pytest.raises(ConfigError, match="is not sealed, so there is no root hash to sign"):
        sign(artifact.path, str(private), certificate=certificate)
