"""Volant's side of the plugin manifest: its published schema, and how the guest gets it.

Written from what plugin-manifest-v1.json and internal/pluginspec of volantvm/volant demand, and
apart from fledge's own types, so that the two can be held against each other.
"""

from __future__ import annotations

import base64
import gzip
import json
from typing import Any

Json = dict[str, Any]

TEXT: Json = {"type": "string"}
WORD: Json = {"type": "string", "minLength": 1}
FLAG: Json = {"type": "boolean"}
TEXTS: Json = {"type": "object", "additionalProperties": TEXT}


def _object(required: str, **properties: Json) -> Json:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": required.split(),
        "properties": properties,
    }


def _list(of: Json, least: int = 0) -> Json:
    return {"type": "array", "items": of, "minItems": least}


def _number(least: int) -> Json:
    return {"type": "integer", "minimum": least}


def _one_of(*texts: str) -> Json:
    return {"enum": list(texts)}


def _schema(workload: Json, network: Json) -> Json:
    document = _object("", inline=FLAG, content=TEXT, path=TEXT)
    found = _object(
        "schema_version name version runtime resources workload",
        schema_version=TEXT,
        name=WORD,
        version=WORD,
        runtime=WORD,
        enabled=FLAG,
        image=TEXT,
        image_digest=TEXT,
        openapi=TEXT,
        labels=TEXTS,
        resources=_object("cpu_cores memory_mb", cpu_cores=_number(1), memory_mb=_number(1)),
        workload=workload,
        rootfs=_object("url", url=TEXT, checksum=TEXT, format=_one_of("raw", "qcow2")),
        initramfs=_object("url", url=TEXT, checksum=TEXT),
        disks=_list(
            _object(
                "name source",
                name=TEXT,
                source=TEXT,
                checksum=TEXT,
                format=_one_of("raw", "qcow2"),
                readonly=FLAG,
                target=TEXT,
            )
        ),
        health_check=_object("endpoint timeout_ms", endpoint=TEXT, timeout_ms=_number(0)),
        actions={
            "type": "object",
            "additionalProperties": _object(
                "method path", method=TEXT, path=TEXT, description=TEXT, timeout_ms=_number(0)
            ),
        },
        cloud_init=_object(
            "",
            datasource=TEXT,
            seed_mode=_one_of("vfat"),
            user_data=document,
            meta_data=document,
            network_config=document,
        ),
        network=network,
        devices=_object("", pci_passthrough=_list(TEXT), allowlist=_list(TEXT)),
    )
    found["properties"]["$schema"] = TEXT
    found["oneOf"] = [{"required": ["rootfs"]}, {"required": ["initramfs"]}]
    return found


_WORKLOAD: Json = {
    "base_url": TEXT,
    "entrypoint": _list(TEXT, 1),
    "env": TEXTS,
    "workdir": TEXT,
}
_NETWORK: Json = {
    "mode": _one_of("vsock", "bridged", "dhcp"),
    "subnet": TEXT,
    "gateway": TEXT,
    "auto_assign": FLAG,
}

PUBLISHED = _schema(
    _object("type base_url entrypoint", type=_one_of("http"), **_WORKLOAD), _object("", **_NETWORK)
)
"""The JSON Schema of a manifest, as of v0.6.5."""

NEWER = _schema(
    _object("type entrypoint", type=_one_of("http", "exec", "grpc"), **_WORKLOAD),
    _object(
        "mode",
        **_NETWORK,
        expose=_list(_object("port", port=_number(1), protocol=TEXT, host_port=_number(0))),
    ),
)
"""The same with the additions of v0.6.6."""


def decode(command_line: str) -> Any:
    """Return the JSON value of the manifest that the agent finds on a kernel's command line.

    Raises `ValueError`, `OSError` or `EOFError` if it is damaged.
    """
    parameters = dict(word.partition("=")[::2] for word in command_line.split())
    encoded = parameters["volant.manifest"]
    packed = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))
    return json.loads(gzip.decompress(packed))
