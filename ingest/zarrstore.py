"""A folder of an object store as zarr takes it."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from typing import Any, TypeVar

from obstore.exceptions import BaseError
from obstore.store import ObjectStore
from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import ObjectStore as ZarrObjectStore

from ingest.objectclient import may_pass, os_errors

T = TypeVar("T")


class _ZarrStore(ZarrObjectStore[Any]):
    """Zarr's own, with OSErrors, and a second try for what obstore doesn't repeat."""

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        get = super().get
        return await _twice(lambda: get(key, prototype, byte_range), f"{key} can't be read")

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        get, ranges = super().get_partial_values, list(key_ranges)
        return await _twice(lambda: get(prototype, ranges), "chunks can't be read")

    async def exists(self, key: str) -> bool:
        exists = super().exists
        return await _twice(lambda: exists(key), f"{key} can't be read")

    async def set(self, key: str, value: Buffer) -> None:
        set_value = super().set
        await _twice(lambda: set_value(key, value), f"{key} can't be written")

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        set_value = super().set_if_not_exists
        await _twice(lambda: set_value(key, value), f"{key} can't be written")

    async def delete(self, key: str) -> None:
        delete = super().delete
        await _twice(lambda: delete(key), f"{key} can't be deleted")

    async def delete_dir(self, prefix: str) -> None:
        delete = super().delete_dir
        await _twice(lambda: delete(prefix), f"{prefix} can't be deleted")

    async def list_dir(self, prefix: str) -> AsyncGenerator[str, None]:
        with os_errors(f"{prefix} can't be listed"):
            async for name in super().list_dir(prefix):
                yield name

    async def _list(self, prefix: str | None = None) -> AsyncGenerator[Any, None]:
        with os_errors(f"{prefix} can't be listed"):
            async for meta in super()._list(prefix):
                yield meta


async def _twice(operation: Callable[[], Awaitable[T]], doing: str) -> T:
    with os_errors(doing):
        try:
            return await operation()
        except BaseError as error:
            if not may_pass(error):
                raise
        return await operation()


def zarr_folder(store: ObjectStore) -> ZarrObjectStore[Any]:
    """What zarr.open_group takes for a store that begins at the group: above it, zarr would make groups of its own."""
    return _ZarrStore(store)
