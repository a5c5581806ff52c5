"""Reads feature stores: `featurestore.open(path_or_url)` gives clips by key, batches, tables (docs/api.md).

Importing the package is quick; what a name needs, torch for instance, is imported when it is first used.
"""

from importlib import import_module
from os import PathLike
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from featurestore.batches import Batch
    from featurestore.epochs import EpochLoader, Tensors
    from featurestore.openstore import MissingClipError, OpenStore
    from featurestore.sample import Sample
    from featurestore.splits import Split
    from featurestore.teachers.base import Teacher
    from manifests.errors import InputError

# Without `open`: a star import must not take away Python's own.
__all__ = [
    "Batch",
    "EpochLoader",
    "InputError",
    "MissingClipError",
    "OpenStore",
    "Sample",
    "Split",
    "Teacher",
    "Tensors",
]

_MODULES = {
    "Batch": "featurestore.batches",
    "EpochLoader": "featurestore.epochs",
    "InputError": "manifests.errors",
    "MissingClipError": "featurestore.openstore",
    "OpenStore": "featurestore.openstore",
    "Sample": "featurestore.sample",
    "Split": "featurestore.splits",
    "Teacher": "featurestore.teachers.base",
    "Tensors": "featurestore.epochs",
}


def open(address: str | PathLike[str] | None = None, snapshot: int | None = None) -> "OpenStore":  # noqa: A001
    """Opens the store at a folder or a URL (s3://, gs://, az://), or the only one under ./data, for reading.

    `snapshot`: the number of an older state of the store; by default the last one. Raises InputError where there is no
    store, or no such snapshot, or it is unfinished or damaged.
    """
    from featurestore.openstore import OpenStore
    from ingest.layout import choose_store

    return OpenStore(choose_store(None if address is None else str(address)), snapshot)


# Type checkers see the imports above, and so still refuse a name that isn't there.
if not TYPE_CHECKING:

    def __getattr__(name):
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(_MODULES[name]), name)

    def __dir__():
        return sorted({*globals(), *__all__})
