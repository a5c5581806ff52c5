"""A shard's sidecar: the Parquet file that is its tar's index, ledger and commit."""

import json
from dataclasses import asdict, dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from ingest.ledger import SCHEMA, LedgerRow
from ingest.location import Location
from ingest.tarwriter import TarWriter
from manifests.clips import write_parquet
from manifests.errors import InputError, first_line


@dataclass(frozen=True, slots=True)
class Sidecar:
    """A committed shard: its tar's sha256 and size, what it was made by, and its ledger."""

    tar_sha256: str
    tar_size: int
    recipe_sha256: str
    ledger: pa.Table


def read_sidecar(location: Location, name: str) -> Sidecar | None:
    """The sidecar of that name, None where there is none. Raises InputError for a damaged one."""
    try:
        content = location.read(name)
    except FileNotFoundError:
        return None
    try:
        table = pq.read_table(pa.BufferReader(content))
        about = json.loads(table.schema.metadata[b"shard"])
        ledger = table.replace_schema_metadata(None).cast(SCHEMA)
        ledger.validate(full=True)
        return Sidecar(about["tar_sha256"], about["tar_size"], about["recipe_sha256"], ledger)
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{location}/{name} is damaged ({first_line(error)}); run `featurestore repair`, or delete it and run the "
            "ingest command again"
        ) from error


def commit_sidecar(location: Location, name: str, rows: list[LedgerRow], writer: TarWriter, recipe_sha256: str) -> None:
    """Writes the sidecar of the tar that `writer` wrote: from then on the shard exists."""
    about = {"tar_sha256": writer.sha256, "tar_size": writer.size, "recipe_sha256": recipe_sha256}
    schema = SCHEMA.with_metadata({"shard": json.dumps(about)})
    table = pa.Table.from_pylist([asdict(row) for row in rows], schema=schema)
    with location.writing(name) as temporary:
        write_parquet(table, temporary)
