"""A store's shards as a pipeline of webdataset's."""

from functools import partial
from typing import Any

from featurestore.store import Store
from manifests.errors import InputError


def webdataset_of(store: Store, *, split: str | None = None, fold: int | None = None, **options: Any) -> Any:
    """A `webdataset.WebDataset` over the shards of the store's snapshot, decoded: `__key__`, `fbank.npy`, `hog.npy`,
    `json`, and `flac` (bytes) where audio was kept.

    `split`, `fold`: only their clips. `options` go to WebDataset (`shardshuffle`, `nodesplitter`, `handler`, ...).
    Raises InputError where webdataset isn't installed, or the store is not on this machine's disks.
    """
    try:
        import webdataset
    except ImportError as error:
        raise InputError(
            "webdataset is not installed: `pip install webdataset`; or use `store.loader()`, which doesn't need it"
        ) from error
    shards = [str(store.root / store.tar_name(shard)) for shard in range(store.snapshot.num_shards)]
    pipeline = webdataset.WebDataset(shards, **{"shardshuffle": False, **options}).decode()
    wanted = {name: value for name, value in (("split", split), ("fold", fold)) if value is not None}
    # No lambda: DataLoader's workers may have to pickle it.
    return pipeline.select(partial(_is_wanted, wanted)) if wanted else pipeline


def _is_wanted(wanted: dict[str, Any], sample: dict[str, Any]) -> bool:
    return all(sample["json"][name] == value for name, value in wanted.items())
