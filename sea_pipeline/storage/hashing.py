"""Hash files and settings, and list what differs between two settings."""

import hashlib
import json
from typing import Any

from sea_pipeline.storage.paths import Place
from sea_pipeline.storage.publish import local_copy


def file_sha256(path: Place) -> str:
    """Return the hexadecimal sha256 of a file's bytes."""
    with local_copy(path) as copy, copy.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def canonical_json(value: Any) -> bytes:  # noqa: ANN401 - whatever JSON holds
    """Encode a JSON value in the one spelling that is hashed, with sorted keys, no spaces and no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def fingerprint_of(fields: dict[str, Any]) -> str:
    """Return the hexadecimal sha256 of the canonical JSON of the named fields."""
    return hashlib.sha256(canonical_json(fields)).hexdigest()


def differing_fields(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """Describe each leaf of nested fields that differs, by its dotted name and both values."""
    there, asked = leaves(found), leaves(wanted)
    return [
        f"{name}: {json.dumps(there.get(name))} there, {json.dumps(asked.get(name))} asked for"
        for name in differing_names(there, asked)
    ]


def differing_names(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """List the names of fields that differ, sorted; an absent one is None."""
    return sorted(name for name in ours | theirs if ours.get(name) != theirs.get(name))


def leaves(fields: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested fields to one level, with the keys joined by dots."""
    found: dict[str, Any] = {}
    for key, value in fields.items():
        found |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found
