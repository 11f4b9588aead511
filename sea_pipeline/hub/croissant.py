"""Croissant metadata (version 1.0) of a folder on the hub: which files there are, what their columns hold."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
"""What the words of the file mean: the context that version 1.0 of the format prescribes."""
_REPOSITORY = "repository"


class Table(NamedTuple):
    """Parquet files of one schema."""

    name: str
    pattern: str
    """Of their paths in the dataset."""
    description: str
    schema: pa.Schema
    columns: Mapping[str, str]
    """What each holds, by name. One without an entry is left out, as bytes are, for which the format has no type."""


def croissant(
    name: str, address: str, description: str, version: str, date: str, licence: str | None, tables: Sequence[Table]
) -> bytes:
    """Gives the metadata as indented JSON.

    Args:
        name: OWNER/NAME.
        address: of the dataset's page.
        description: a paragraph.
        version: of sea-pipeline, which wrote the files.
        date: when the last of them was finished, ISO 8601.
        licence: what the card says; None leaves it out.
        tables: what the dataset holds.
    """
    repository = {
        "@type": "cr:FileObject",
        "@id": _REPOSITORY,
        "name": _REPOSITORY,
        "description": "The dataset on the hub.",
        "contentUrl": address,
        "encodingFormat": "git+https",
        # It has no hash, as it changes; the format wants one.
        "sha256": "https://github.com/mlcommons/croissant/issues/80",
    }
    found: dict[str, Any] = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": name,
        "description": description,
        "url": address,
        "creator": {"@type": "sc:Organization", "name": name.partition("/")[0]},
        "datePublished": date,
        "version": version,
        "citeAs": f"{name}, made with sea-pipeline {version}.",
        "distribution": [repository, *map(_files, tables)],
        "recordSet": [_records(table) for table in tables],
    }
    if licence:
        found["license"] = licence
    return (json.dumps(found, indent=2, ensure_ascii=False) + "\n").encode()


def _files(table: Table) -> dict[str, Any]:
    return {
        "@type": "cr:FileSet",
        "@id": f"{table.name}-files",
        "name": f"{table.name}-files",
        "description": f"The Parquet files of {table.name}.",
        "containedIn": {"@id": _REPOSITORY},
        "encodingFormat": "application/x-parquet",
        "includes": table.pattern,
    }


def _records(table: Table) -> dict[str, Any]:
    fields = [
        _field(f"{table.name}/{column}", column, said, table.schema.field(column).type, f"{table.name}-files")
        for column, said in table.columns.items()
    ]
    return {
        "@type": "cr:RecordSet",
        "@id": table.name,
        "name": table.name,
        "description": table.description,
        "field": fields,
    }


def _field(path: str, column: str, said: str, kind: pa.DataType, files: str) -> dict[str, Any]:
    is_list = pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind)
    element = kind.value_type if is_list else kind
    types = (pa.types.is_floating, "sc:Float"), (pa.types.is_integer, "sc:Integer"), (pa.types.is_string, "sc:Text")
    return {
        "@type": "cr:Field",
        "@id": path,
        "name": path,
        "description": said,
        "dataType": next(name for is_type, name in types if is_type(element)),
        **({"repeated": True} if is_list else {}),
        "source": {"fileSet": {"@id": files}, "extract": {"column": column}},
    }
