"""Write Croissant metadata (version 1.0) of a folder on the hub, with its files and their columns."""

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
"""The meaning of the file's words, which is the context that version 1.0 of the format prescribes."""
_REPOSITORY = "repository"


class Table(NamedTuple):
    """Parquet files with the same schema."""

    name: str
    pattern: str
    """The pattern of their paths in the dataset."""
    description: str
    schema: pa.Schema
    columns: Mapping[str, str]
    """The description of each column, by name. Columns without one are left out, such as bytes, which the format has no
    type for."""


def croissant(
    name: str, address: str, description: str, version: str, date: str, licence: str | None, tables: Sequence[Table]
) -> bytes:
    """Encode the metadata as indented JSON.

    Args:
        name: OWNER/NAME.
        address: the URL of the dataset's page.
        description: one paragraph.
        version: the version of sea-pipeline, which wrote the files.
        date: the time at which the last shard was finished, ISO 8601.
        licence: the licence that the card names; None leaves it out.
        tables: the tables of the dataset.
    """
    repository = {
        "@type": "cr:FileObject",
        "@id": _REPOSITORY,
        "name": _REPOSITORY,
        "description": "The dataset on the hub.",
        "contentUrl": address,
        "encodingFormat": "git+https",
        # The format requires a hash, but a repository changes and has none.
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
