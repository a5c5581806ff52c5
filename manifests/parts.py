"""manifest.parquet: the manifests of a store's parts, one behind the other."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from manifests.clips import SCHEMA, Manifest, Sources, write_parquet
from manifests.errors import InputError, first_line
from manifests.vocabulary import Vocabulary

# Parquet's name of the values in the lists.
_LABELS_PATH = "labels.list.element"
_ROWS_A_PIECE = 1 << 16


def write_manifests(parts: Sequence[Manifest], path: Path) -> None:
    """Writes manifests that share a dataset, a seed and a vocabulary as one Parquet file at `path`."""
    first = parts[0]
    about = {
        "dataset": first.dataset,
        "seed": first.seed,
        "parts": [{"num_clips": len(part), "sources": part.sources.model_dump()} for part in parts],
        **first.vocabulary.model_dump(),
    }
    table = pa.concat_tables([part.table for part in parts])
    write_parquet(table.replace_schema_metadata({"manifest": json.dumps(about)}), path)


class ManifestFile:
    """An open manifest.parquet, whose columns are read when they are asked for: of two million rows few are."""

    def __init__(self, file: BinaryIO | pa.NativeFile, where: str) -> None:
        """Raises InputError, naming `where`, when `file` isn't what :func:`write_manifests` wrote."""
        self._where = where
        try:
            self._file = pq.ParquetFile(file)
            about = json.loads(self._file.schema_arrow.metadata[b"manifest"])
            self.dataset: str = about["dataset"]
            self.seed: int = about["seed"]
            self.vocabulary = Vocabulary(labels=about["labels"])
            self.sources = [Sources.model_validate(part["sources"]) for part in about["parts"]]
            self.part_sizes: list[int] = [part["num_clips"] for part in about["parts"]]
            if self._file.schema_arrow.remove_metadata() != SCHEMA.remove_metadata():
                raise ValueError("its columns are others")
            if sum(self.part_sizes) != len(self):
                raise ValueError(f"it has {len(self)} rows and names {sum(self.part_sizes)}")
            # Few labels stand in many rows: as dictionaries they are read ten times as fast.
            self._labels_file = pq.ParquetFile(file, metadata=self._file.metadata, read_dictionary=[_LABELS_PATH])
        except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:  # pydantic's is a ValueError
            raise self._damaged(error) from error

    def __len__(self) -> int:
        return int(self._file.metadata.num_rows)

    def columns(self, *names: str, num_rows: int | None = None) -> pa.Table:
        """Some columns (all, if none is named) of the first `num_rows` rows; raises InputError where damaged."""
        try:
            table = self._file.read(columns=list(names) or None)
            table.validate(full=True)
        except (OSError, pa.ArrowException, ValueError) as error:
            raise self._damaged(error) from error
        return table.replace_schema_metadata(None).slice(0, num_rows)

    def labels(self) -> Iterator[pa.ListArray]:
        """The labels of all rows piece by piece, as lists of dictionaries' items; raises InputError where damaged."""
        try:
            for batch in self._labels_file.iter_batches(_ROWS_A_PIECE, columns=["labels"]):
                batch.validate(full=True)
                yield batch["labels"]
        except (OSError, pa.ArrowException, ValueError) as error:
            raise self._damaged(error) from error

    def manifests(self) -> list[Manifest]:
        """The parts' manifests, in order."""
        table = self.columns()
        manifests, first = [], 0
        for sources, size in zip(self.sources, self.part_sizes, strict=True):
            manifests.append(Manifest(self.dataset, self.vocabulary, sources, self.seed, table.slice(first, size)))
            first += size
        return manifests

    def _damaged(self, error: Exception) -> InputError:
        return InputError(
            f"{self._where} is not a readable manifest ({first_line(error)}); run the ingest command again"
        )
