"""Writes CycloneDX 1.6 documents as JSON (cyclonedx.org/docs/1.6/json).

Not by cyclonedx-python-lib: provenance records the bytes, which must not change with the version of
a library.
"""

from __future__ import annotations

from typing import Any

from fledge import _version
from fledge.project.sboms.inventory import Component, Inventory, components
from fledge.sources.kinds import IMAGE_ROLES

ARTIFACT = "artifact"
"""The reference of the artifact in a document."""

KINDS = {**dict.fromkeys(IMAGE_ROLES, "container"), "mapping": "file"}
"""The types of inputs by their roles. All others are applications."""


def document(inventory: Inventory) -> dict[str, Any]:
    """Return the document that describes an artifact."""
    found = components(inventory)
    answer: dict[str, Any] = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{inventory.serial_number}",
        "version": 1,
        "metadata": {
            "timestamp": inventory.created,
            "tools": {
                "components": [
                    {"type": "application", "name": "fledge", "version": _version.__version__}
                ]
            },
            "component": {
                "type": "operating-system",
                "bom-ref": ARTIFACT,
                "name": inventory.name,
                "hashes": [{"alg": "SHA-256", "content": inventory.digest.hex}],
            },
        },
        "components": [_component(each) for each in found],
        "dependencies": [{"ref": ARTIFACT, "dependsOn": [each.id for each in found]}],
    }
    if inventory.found.problems:
        answer["compositions"] = [{"aggregate": "incomplete", "assemblies": [ARTIFACT]}]
        answer["metadata"]["properties"] = [
            {"name": "fledge:incomplete", "value": each} for each in inventory.found.problems
        ]
    return answer


def _component(component: Component) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "type": KINDS.get(component.role, "application") if component.role else "library",
        "bom-ref": component.id,
        "name": component.name,
    }
    if component.version:
        answer["version"] = component.version
    if component.digest:
        answer["hashes"] = [{"alg": "SHA-256", "content": component.digest.hex}]
    if component.is_expression:
        answer["licenses"] = [{"expression": component.licence}]
    elif component.licence:
        answer["licenses"] = [{"license": {"name": component.licence}}]
    if component.purl:
        answer["purl"] = component.purl
    if component.path:
        answer["evidence"] = {"occurrences": [{"location": component.path}]}
    answer["properties"] = [
        {"name": f"fledge:{name}", "value": value}
        for name, value in (
            ("role", component.role),
            ("uri", component.uri),
            ("source-package", component.source),
        )
        if value
    ]
    if not answer["properties"]:
        del answer["properties"]
    return answer
