"""croissant.json: what a store holds, in MLCommons' Croissant 1.1, for search engines and loaders."""

import hashlib
import json
from typing import Any

import pyarrow as pa

from ingest.card import LIST_FIELDS, SAMPLE_FIELDS, hog_shape
from ingest.coverage import StoreFacts
from ingest.layout import MANIFEST_FILE, SHARD_FOLDER
from ingest.ledger import SCHEMA as LEDGER_SCHEMA
from ingest.licences import terms_of
from manifests.clips import SCHEMA as MANIFEST_SCHEMA

VERSION = "http://mlcommons.org/croissant/1.1"
_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "arrayShape": "cr:arrayShape",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "containedIn": "cr:containedIn",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "description": {"@container": "@language"},
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isArray": "cr:isArray",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "name": {"@container": "@language"},
    "parentField": "cr:parentField",
    "path": "cr:path",
    "rai": "http://mlcommons.org/croissant/RAI/",
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
_TEXT, _INTEGER, _FLOAT, _BOOLEAN, _FLOAT16 = "sc:Text", "sc:Integer", "sc:Float", "sc:Boolean", "cr:Float16"
_MEDIA_TYPES = {".csv": "text/csv", ".txt": "text/plain"}
_TYPES = {"string": _TEXT, "int64": _INTEGER}


def croissant_json(facts: StoreFacts, tables: dict[str, str]) -> str:
    """The metadata of a store whose folder also holds `tables` (file name -> text).

    Every tar and table has its sha256. The record sets clips, ledger, coverage and missing can be read by mlcroissant;
    samples, fbank and hog say what the tars' members are, which it can't open (json and npy inside a tar).
    """
    shapes = {"fbank": (facts.fbank.num_frames, facts.fbank.num_mel_bins), "hog": hog_shape(facts)}
    metadata = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": VERSION,
        "name": facts.dataset,
        "description": f"Log-mel filter banks, HOG statistics and labels of {facts.num_clips} audio clips of the "
        f"{facts.num_clips_asked} asked for, {len(facts.vocabulary)} classes, in {facts.num_shards} WebDataset tars. "
        f"Snapshot {facts.snapshot}, fingerprint {facts.fingerprint}. All fbank values have mean {facts.mean!r} and "
        f"standard deviation {facts.std!r}.",
        "version": f"{facts.snapshot}.0.0",
        **_terms(facts),
        "keywords": ["audio", "fbank", "hog", "webdataset"],
        "distribution": [*_files(facts, tables), *_file_sets(facts)],
        "recordSet": [_samples(), *(_arrays(name, shape) for name, shape in shapes.items()), *_readable()],
    }
    return json.dumps(metadata, indent=1, ensure_ascii=False) + "\n"


def _terms(facts: StoreFacts) -> dict[str, Any]:
    licences = terms_of(facts.dataset, facts.lists).licences.values()
    urls = list(dict.fromkeys(licence.url for licence in licences))
    citations = dict.fromkeys(licence.citation for licence in licences)
    return {"license": urls if len(urls) > 1 else urls[0], "citeAs": "\n".join(citations)} if urls else {}


def _files(facts: StoreFacts, tables: dict[str, str]) -> list[dict[str, Any]]:
    tars = [
        _file(name, "application/x-tar", sha256, size)
        for name, size, sha256 in zip(facts.tar_names, facts.tar_sizes, facts.tar_sha256, strict=True)
    ]
    return tars + [
        _file(name, _MEDIA_TYPES[name[-4:]], hashlib.sha256(text.encode()).hexdigest(), len(text.encode()))
        for name, text in tables.items()
    ]


def _file(name: str, media_type: str, sha256: str, size: int) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": name,
        "name": name,
        "contentUrl": name,
        "contentSize": f"{size} B",
        "encodingFormat": media_type,
        "sha256": sha256,
    }


def _file_sets(facts: StoreFacts) -> list[dict[str, Any]]:
    members = {"json": ("*.json", "application/json")}
    members |= {name: (f"*.{name}.npy", "application/x-npy") for name in ("fbank", "hog")}
    if facts.keep_audio:
        members["flac"] = ("*.flac", "audio/flac")
    return [
        _file_set("manifest", MANIFEST_FILE, "application/x-parquet"),
        _file_set("sidecars", f"{SHARD_FOLDER}/*.parquet", "application/x-parquet"),
        _file_set("tars", f"{SHARD_FOLDER}/*.tar", "application/x-tar"),
        *(_file_set(f"{name}-files", *about) | {"containedIn": {"@id": "tars"}} for name, about in members.items()),
    ]


def _file_set(name: str, includes: str, media_type: str) -> dict[str, Any]:
    return {"@type": "cr:FileSet", "@id": name, "name": name, "includes": includes, "encodingFormat": media_type}


def _samples() -> dict[str, Any]:
    fields = [
        _field("samples", name, _TYPES[dtype], {"fileSet": {"@id": "json-files"}, "extract": {"jsonPath": f"$.{name}"}})
        | ({"isArray": True, "arrayShape": "-1"} if name in LIST_FIELDS else {})
        for name, dtype in SAMPLE_FIELDS.items()
    ]
    return _record_set("samples", "KEY.json of the clips that are in the shards.", "key", fields)


def _arrays(name: str, shape: tuple[int, ...]) -> dict[str, Any]:
    from_name = {"extract": {"fileProperty": "filename"}, "transform": {"regex": f"^(.*)\\.{name}\\.npy$"}}
    content = {"fileSet": {"@id": f"{name}-files"}, "extract": {"fileProperty": "content"}}
    fields = [
        _field(name, "key", _TEXT, {"fileSet": {"@id": f"{name}-files"}, **from_name}),
        _field(name, "values", _FLOAT16, content) | {"isArray": True, "arrayShape": ",".join(map(str, shape))},
    ]
    return _record_set(name, f"KEY.{name}.npy of the clips that are in the shards, in numpy's format.", "key", fields)


def _readable() -> list[dict[str, Any]]:
    count = {"asked": _INTEGER, "present": _INTEGER}
    missing = {"key": _TEXT, "split": _TEXT, "reason": _TEXT}
    return [
        _parquet("clips", "manifest", "A row per clip asked for: its source, labels and split.", MANIFEST_SCHEMA),
        _parquet("ledger", "sidecars", "A row per clip asked for: its place in its tar, or why not.", LEDGER_SCHEMA),
        _table("coverage.csv", "By class and split.", None, {"id": _TEXT, "name": _TEXT, "split": _TEXT, **count}),
        _table("missing.csv", "The clips asked for that are not there.", "key", missing),
    ]


def _parquet(name: str, file_set: str, description: str, schema: pa.Schema) -> dict[str, Any]:
    fields = [_typed_field(name, field.name, field.type, {"fileSet": {"@id": file_set}}) for field in schema]
    return _record_set(name, description, "key", fields)


def _typed_field(record_set: str, name: str, arrow_type: pa.DataType, source: dict[str, Any]) -> dict[str, Any]:
    if pa.types.is_list(arrow_type):
        return _typed_field(record_set, name, arrow_type.value_type, source) | {"isArray": True, "arrayShape": "-1"}
    if pa.types.is_boolean(arrow_type):
        data_type = _BOOLEAN
    elif pa.types.is_integer(arrow_type):
        data_type = _INTEGER
    else:
        data_type = _FLOAT if pa.types.is_floating(arrow_type) else _TEXT
    return _field(record_set, name, data_type, source | {"extract": {"column": name}})


def _table(file: str, description: str, key: str | None, columns: dict[str, str]) -> dict[str, Any]:
    name = file.removesuffix(".csv")
    fields = [
        _field(name, column, data_type, {"fileObject": {"@id": file}, "extract": {"column": column}})
        for column, data_type in columns.items()
    ]
    return _record_set(name, description, key, fields)


def _field(record_set: str, name: str, data_type: str, source: dict[str, Any]) -> dict[str, Any]:
    return {
        "@type": "cr:Field",
        "@id": f"{record_set}/{name}",
        "name": name,
        "dataType": data_type,
        "source": source,
    }


def _record_set(name: str, description: str, key: str | None, fields: list[dict[str, Any]]) -> dict[str, Any]:
    about = {"@type": "cr:RecordSet", "@id": name, "name": name, "description": description, "field": fields}
    return about if key is None else about | {"key": {"@id": f"{name}/{key}"}}
