"""What the libraries of SPDX and CycloneDX say of documents in their formats."""

from __future__ import annotations

from pathlib import Path

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from spdx_tools.spdx.parser.parse_anything import parse_file
from spdx_tools.spdx.validation.document_validator import validate_full_spdx_document


def problems(document: Path) -> list[str]:
    """Return what is wrong with a document, whose suffix says its format."""
    if document.name.endswith(".spdx.json"):
        found = validate_full_spdx_document(parse_file(str(document)))
        return [each.validation_message for each in found]
    error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(document.read_text())
    return [str(error)] if error else []
