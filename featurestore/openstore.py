"""A store as programs of other people use it: clips by key, batches, tables."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from featurestore.cliptable import clip_table
from featurestore.keyindex import KEYS_A_PIECE, KeyIndex
from featurestore.sample import Sample, read_sample
from featurestore.splits import DEFAULT_HOLDOUT_SHARE, Split, hold_out, refuse_idle_share, require_part
from featurestore.store import Store
from featurestore.teachercache import TeacherCache
from featurestore.towebdataset import webdataset_of
from ingest.layout import CHECKSUM_FILE
from manifests.errors import InputError
from manifests.vocabulary import Vocabulary

if TYPE_CHECKING:
    from featurestore.epochs import EpochLoader

# What is written when a teacher's cache is begun, and when it is finished.
TEACHER_FILES = ("zarr.json", CHECKSUM_FILE)


class MissingClipError(InputError, KeyError):
    """A key that the store has no clip for: it was never asked for, or it failed, and the message says why."""

    # KeyError's own would show the message in quotes.
    __str__ = Exception.__str__


# Not derived from it: it would compare stores by all their content, and leave them without a hash.
@Mapping.register
class OpenStore(Store):
    """A snapshot of a store, opened for reading by :func:`featurestore.open`.

    It works like a dictionary of clips by key, of those that are in the shards: `store[key]`, `key in store`,
    `len(store)`, `for key in store`, `get`, `items`, `values`. `snapshot` (number, fingerprint, mean, std), `file` (the
    content of store.json), `splits`, `folds` and `teachers` say what there is. Clips are also known by their `row`, an
    integer that tables, batches and teachers' caches share.
    """

    def __reduce__(self) -> tuple[Callable[[str, int, str], "OpenStore"], tuple[str, int, str]]:
        """A process that gets it opens it again, once for all clips that come with it."""
        folder = self.location.folder
        address = str(self.location) if folder is None else str(folder.absolute())
        return _reopen, (address, self.snapshot.number, self.snapshot.fingerprint)

    @property
    def vocabulary(self) -> Vocabulary:
        """The labels: `vocabulary.ids`, `vocabulary.names`, in the order of all label arrays."""
        return self.file.vocabulary

    def __getitem__(self, key: str) -> Sample:
        """The clip of a key. Raises MissingClipError, a KeyError and an InputError, where there is none."""
        return read_sample(self, self.row_of(key))

    def __contains__(self, key: object) -> bool:
        row = self._key_index.row_of(key) if isinstance(key, str) else None
        return row is not None and bool(self.ok[row])

    def __iter__(self) -> Iterator[str]:
        rows = self.rows()
        for start in range(0, len(rows), KEYS_A_PIECE):
            yield from super().keys(rows[start : start + KEYS_A_PIECE])

    def keys(self, rows: NDArray[np.int64] | None = None) -> list[str]:
        """The keys of `rows`; of all clips in the shards by default."""
        return super().keys(self.rows() if rows is None else rows)

    def get(self, key: str, default: Any = None) -> Any:
        """The clip of a key; `default` where there is none in the shards."""
        try:
            return self[key]
        except MissingClipError:
            return default

    def items(self) -> Iterator[tuple[str, Sample]]:
        """Each key with its clip, read as it is its turn."""
        return ((key, self[key]) for key in self)

    def values(self) -> Iterator[Sample]:
        """The clips, in the order of their keys in `keys()`, each read as it is its turn."""
        return (self[key] for key in self)

    def row_of(self, key: str) -> int:
        """The row of a key's clip. Raises MissingClipError where there is none in the shards."""
        row = self._key_index.row_of(key)
        where = f"{self.location} (snapshot {self.snapshot.number})"
        if row is None:
            some = ", ".join(super().keys(self.rows()[:1]))
            raise MissingClipError(
                f"{where} has no clip {key!r}, and was never asked for it; it has {len(self)}, for instance {some}"
            )
        if not self.ok[row]:
            ledger = self.ledger(row)
            raise MissingClipError(
                f"{where} has no clip {key!r}: it failed in the ingest with {ledger['reason']} ({ledger['detail']}); "
                "mend its source and run the ingest command again with --retry-failed"
            )
        return row

    @cached_property
    def _key_index(self) -> KeyIndex:
        return KeyIndex(self._keys)

    def teacher(self, name: str) -> TeacherCache:
        """A teacher's cached outputs: `embeddings(rows)`, `logits(rows)`, ... Raises InputError if there are none.

        In a folder of this machine, a cache that was built since is opened anew.
        """
        state = self._state_of_teacher(name)
        known = self._teacher_caches.get(name)
        if known is None or known[0] != state:
            known = self._teacher_caches[name] = state, TeacherCache(self, name)
        return known[1]

    @cached_property
    def _teacher_caches(self) -> dict[str, tuple[tuple[int, ...], TeacherCache]]:
        return {}

    def _state_of_teacher(self, name: str) -> tuple[int, ...]:
        """What changes with a cache's files."""
        folder = self.location.folder
        files = [] if folder is None else [folder / self.teacher_name(name) / file for file in TEACHER_FILES]
        states = [file.stat() for file in files if file.exists()]
        return tuple(number for state in states for number in (state.st_ino, state.st_mtime_ns, state.st_size))

    def hold_out(
        self,
        *,
        split: str | None = None,
        fold: int | None = None,
        share: float = DEFAULT_HOLDOUT_SHARE,
        seed: int = 0,
    ) -> Split:
        """Rows to train on (`.train`) and to be judged by (`.held_out`), as `training run` chooses them.

        Held out is the split or the fold that is named; else the store's split called eval, test or validation, else
        its first fold, else a seeded share, in which clips of one source stay together. Raises InputError where a side
        would be empty, and for a `share` where a split or a fold is held out.
        """
        refuse_idle_share(self, split, fold, share)
        return hold_out(self, split=split, fold=fold, share=share, seed=seed)

    def loader(
        self,
        batch_size: int,
        *,
        rows: NDArray[np.int64] | None = None,
        split: str | None = None,
        fold: int | None = None,
        shuffle: bool = True,
        seed: int = 0,
        teacher: str | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> "EpochLoader":
        """Batches of the clips in `rows` (each once, in any order), or of a split or fold, or of all.

        `teacher`: a cache whose embeddings are joined. `batch_size` is that of one of `world_size` ranks. Raises
        InputError where there is no such part, too few clips, or no such cache.
        """
        # It brings its own imports, which a look into a table doesn't need.
        from featurestore.epochs import EpochLoader

        return EpochLoader(
            self,
            self._part(rows, split, fold),
            batch_size,
            shuffle=shuffle,
            seed=seed,
            teacher=None if teacher is None else self.teacher(teacher),
            rank=rank,
            world_size=world_size,
        )

    def _part(self, rows: NDArray[np.int64] | None, split: str | None, fold: int | None) -> NDArray[np.int64]:
        if rows is not None and (split is not None or fold is not None):
            raise InputError("rows are given, and a split or fold as well; choose one")
        require_part(self, split, fold)
        return self.rows(split=split, fold=fold) if rows is None else self._checked(rows)

    def _checked(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        # numpy takes an empty list for one of floats
        chosen = np.unique(rows) if len(rows) else np.empty(0, np.int64)
        if chosen.dtype.kind not in "iu":
            raise InputError(f"rows are whole numbers, and {chosen.dtype} is given; `numpy.flatnonzero` takes a mask")
        if len(chosen) and not (chosen[0] >= 0 and chosen[-1] < len(self.ok)):
            raise InputError(
                f"the rows of {self.location} are 0 to {len(self.ok) - 1}, and {chosen[0]} to {chosen[-1]} are given; "
                "take them from `store.table()`"
            )
        if not self.ok[chosen].all():
            failed = super().keys(chosen[~self.ok[chosen]][:1])[0]
            raise InputError(f"clip {failed} is among the rows, and it failed in the ingest; take rows that are ok")
        return chosen.astype(np.int64)

    def to_webdataset(self, *, split: str | None = None, fold: int | None = None, **options: Any) -> Any:
        """A `webdataset.WebDataset` over this snapshot's shards, decoded; see :func:`webdataset_of`."""
        self._part(None, split, fold)
        return webdataset_of(self, split=split, fold=fold, **options)

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """A pyarrow table, a row for every clip asked for; see :func:`clip_table` for its columns."""
        return clip_table(self, columns)


@lru_cache(maxsize=8)
def _reopen(address: str, snapshot: int, fingerprint: str) -> OpenStore:
    """The store, of which the fingerprint says whether it is still that one."""
    return OpenStore(address, snapshot)
