"""What a shard holds already when it is made once more: whole samples are copied, and only the others made anew."""

import hashlib
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import BinaryIO

from ingest.ledger import LedgerRow, moved
from ingest.location import Location
from ingest.sidecar import read_sidecar
from ingest.tarwriter import TarWriter
from manifests.errors import InputError


@dataclass
class HeldShard:
    """An open shard; `rows` has the ledger's rows of the clips in its tar, by key."""

    rows: dict[str, LedgerRow] = field(default_factory=dict)
    tar: BinaryIO | None = None

    def copy(self, key: str, writer: TarWriter) -> LedgerRow | None:
        """Copies a clip's members into a new tar; None, and nothing copied, where the clip isn't there unharmed."""
        row = self.rows.get(key)
        if self.tar is None or row is None or row.sample_offset is None or row.sample_size is None:
            return None
        self.tar.seek(row.sample_offset)
        members = self.tar.read(row.sample_size)
        if zlib.crc32(members) != row.sample_crc32:
            return None
        start = writer.start_sample()
        writer.copy(members)
        return moved(row, start)


def held_rows(
    location: Location, sidecar_name: str, recipe_sha256: str, sidecar_sha256: str | None = None
) -> dict[str, LedgerRow]:
    """The rows of the clips that a shard says to hold; none where it was made by another recipe, or is damaged.

    `sidecar_sha256`: what the sidecar must come to, where that is known.
    """
    try:
        if sidecar_sha256 not in (None, hashlib.sha256(location.read(sidecar_name)).hexdigest()):
            return {}
        sidecar = read_sidecar(location, sidecar_name)
    except (InputError, FileNotFoundError):
        return {}
    if sidecar is None or sidecar.recipe_sha256 != recipe_sha256:
        return {}
    return {row["key"]: LedgerRow(**row) for row in sidecar.ledger.filter(sidecar.ledger["ok"]).to_pylist()}


@contextmanager
def open_held(
    location: Location, tar_name: str, sidecar_name: str, recipe_sha256: str, sidecar_sha256: str | None
) -> Iterator[HeldShard]:
    """Opens what a shard holds; nothing where there is no such shard. The hashes: see :func:`held_rows`."""
    with ExitStack() as stack:
        held = HeldShard(held_rows(location, sidecar_name, recipe_sha256, sidecar_sha256))
        if held.rows and location.exists(tar_name):
            path = stack.enter_context(location.local_copy(tar_name))
            held.tar = stack.enter_context(path.open("rb"))
        yield held
