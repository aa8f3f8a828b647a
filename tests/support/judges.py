"""What the libraries of SPDX and CycloneDX say of documents in their formats."""

from __future__ import annotations

from pathlib import Path


def problems(document: Path) -> list[str]:
    """Return what is wrong with a document, whose suffix says its format."""
    # Imported here, because they take seconds to load, and fast tests need none of them.
    if document.name.endswith(".spdx.json"):
        from spdx_tools.spdx.parser.parse_anything import parse_file  # noqa: PLC0415
        from spdx_tools.spdx.validation import document_validator  # noqa: PLC0415

        found = document_validator.validate_full_spdx_document(parse_file(str(document)))
        return [each.validation_message for each in found]
    from cyclonedx.schema import SchemaVersion  # noqa: PLC0415
    from cyclonedx.validation.json import JsonStrictValidator  # noqa: PLC0415

    error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(document.read_text())
    return [str(error)] if error else []
