"""Writes SPDX 2.3 documents as JSON (spdx.github.io/spdx-spec/v2.3).

The document describes the artifact, which contains a package for each component. Not by spdx-tools:
provenance records the bytes, which must not change with the version of a library.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256
from typing import Any

from fledge import _version
from fledge.project.sboms.inventory import Component, Inventory, components

ARTIFACT = "SPDXRef-Artifact"
UNKNOWN = "NOASSERTION"


def document(inventory: Inventory) -> dict[str, Any]:
    """Return the document that describes an artifact."""
    found = components(inventory)
    others = {each.licence: _reference(each.licence) for each in found if _is_other(each)}
    answer: dict[str, Any] = {
        "SPDXID": "SPDXRef-DOCUMENT",
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "name": inventory.name,
        "documentNamespace": inventory.uri,
        "creationInfo": {
            "created": inventory.created,
            "creators": [f"Tool: fledge-{_version.__version__}"],
        },
        "documentDescribes": [ARTIFACT],
        "packages": [_artifact(inventory), *map(_package, found)],
        "relationships": list(_relationships(found)),
    }
    if inventory.found.problems:
        answer["comment"] = "\n".join(("Incomplete:", *inventory.found.problems))
    if others:
        answer["hasExtractedLicensingInfos"] = [
            {"licenseId": name, "extractedText": text, "name": text}
            for text, name in sorted(others.items())
        ]
    return answer


def _artifact(inventory: Inventory) -> dict[str, Any]:
    return {
        "SPDXID": ARTIFACT,
        "name": inventory.name,
        "packageFileName": inventory.name,
        "checksums": [{"algorithm": "SHA256", "checksumValue": inventory.digest.hex}],
        "downloadLocation": UNKNOWN,
        "filesAnalyzed": False,
        "licenseConcluded": UNKNOWN,
        "licenseDeclared": UNKNOWN,
        "copyrightText": UNKNOWN,
        "primaryPackagePurpose": "OPERATING-SYSTEM",
    }


def _package(component: Component) -> dict[str, Any]:
    """Return the package of a component (SPDX 2.3, clause 7)."""
    is_url = component.uri.startswith(("http://", "https://"))
    declared = component.licence or UNKNOWN
    if _is_other(component):
        declared = _reference(component.licence)
    answer: dict[str, Any] = {
        "SPDXID": f"SPDXRef-{component.id}",
        "name": component.name,
        "downloadLocation": component.uri if is_url else UNKNOWN,
        "filesAnalyzed": False,
        "licenseConcluded": UNKNOWN,
        "licenseDeclared": declared,
        "copyrightText": UNKNOWN,
    }
    if component.version:
        answer["versionInfo"] = component.version
    if component.digest:
        answer["checksums"] = [{"algorithm": "SHA256", "checksumValue": component.digest.hex}]
    if component.purl:
        answer["externalRefs"] = [
            {
                "referenceCategory": "PACKAGE-MANAGER",
                "referenceType": "purl",
                "referenceLocator": component.purl,
            }
        ]
    if info := _source_info(component):
        answer["sourceInfo"] = info
    return answer


def _source_info(component: Component) -> str:
    if component.role:
        return f"{component.role} of the build: {component.uri}"
    built = f"; built from the source package {component.source}" if component.source else ""
    return f"listed in {component.path}{built}"


def _relationships(found: Iterable[Component]) -> Iterable[dict[str, str]]:
    yield {
        "spdxElementId": "SPDXRef-DOCUMENT",
        "relationshipType": "DESCRIBES",
        "relatedSpdxElement": ARTIFACT,
    }
    for component in found:
        yield {
            "spdxElementId": ARTIFACT,
            "relationshipType": "CONTAINS",
            "relatedSpdxElement": f"SPDXRef-{component.id}",
        }


def _is_other(component: Component) -> bool:
    """Return whether the licence is a text, which the document has to list (clause 10)."""
    return bool(component.licence) and not component.is_expression


def _reference(licence: str) -> str:
    return f"LicenseRef-{sha256(licence.encode()).hexdigest()[:16]}"
