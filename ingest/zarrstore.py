"""A folder of an object store as zarr takes it."""

from collections.abc import AsyncGenerator, Iterable
from typing import Any

from obstore.store import ObjectStore
from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import ObjectStore as ZarrObjectStore

from ingest.objectclient import os_errors


class _ZarrStore(ZarrObjectStore[Any]):
    """Zarr's own, with OSErrors; obstore repeats requests that fail."""

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        with os_errors(f"{key} can't be read"):
            return await super().get(key, prototype, byte_range)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        with os_errors("chunks can't be read"):
            return await super().get_partial_values(prototype, key_ranges)

    async def exists(self, key: str) -> bool:
        with os_errors(f"{key} can't be read"):
            return await super().exists(key)

    async def set(self, key: str, value: Buffer) -> None:
        with os_errors(f"{key} can't be written"):
            await super().set(key, value)

    async def delete(self, key: str) -> None:
        with os_errors(f"{key} can't be deleted"):
            await super().delete(key)

    async def delete_dir(self, prefix: str) -> None:
        with os_errors(f"{prefix} can't be deleted"):
            await super().delete_dir(prefix)

    async def _list(self, prefix: str | None = None) -> AsyncGenerator[Any, None]:
        with os_errors(f"{prefix} can't be listed"):
            async for meta in super()._list(prefix):
                yield meta


def zarr_folder(store: ObjectStore) -> ZarrObjectStore[Any]:
    """What zarr.open_group takes for a store that begins at the group: above it, zarr would make groups of its own."""
    return _ZarrStore(store)
