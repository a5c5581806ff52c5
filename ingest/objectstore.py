"""A prefix in an object store (S3, Google, Azure) as a :class:`Location`."""

import io
import posixpath
import secrets
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote

import obstore
from obstore.exceptions import GenericError, PreconditionError

from ingest.atomic import TEMPORARY_SUFFIX
from ingest.lease import LeaseTimes, Lock, leased
from ingest.location import LocalFolder, Location
from ingest.objectclient import SCHEMES, Patience, attempt, connect, status_of
from manifests.errors import InputError

if TYPE_CHECKING:
    from obstore import GetOptions, ObjectMeta

T = TypeVar("T")

# A file is read and written in such parts, so that a lost connection costs one of them, and memory is bounded.
PART_BYTES = 8 << 20
_NUM_PARTS_AT_ONCE = 4


@dataclass(frozen=True)
class _Part:
    content: obstore.Bytes | bytes
    size: int  # of the whole file
    e_tag: str | None


class ObjectFolder(Location):
    """A prefix in an object store; `str()` of it opens it again elsewhere, with the environment's credentials there.

    A killed upload leaves parts that nobody sees and that can't be listed here: a rule of the bucket for incomplete
    multipart uploads removes them. Not for processes forked from one that used it: obstore's threads don't come along.
    """

    def __init__(self, address: str, patience: Patience | None = None, lease_times: LeaseTimes | None = None) -> None:
        self._root, self._prefix = _split(address)
        super().__init__(f"{self._root}/{self._prefix}".rstrip("/"))
        self._patience = patience or Patience()
        self._lease_times = lease_times or LeaseTimes()
        self._store = connect(self._root, self._patience)

    def __reduce__(self) -> tuple[Any, ...]:
        return ObjectFolder, (self.address, self._patience, self._lease_times)

    @property
    def name(self) -> str:
        return super().name.partition("@")[0]

    @property
    def folder(self) -> None:
        return None

    def child(self, name: str) -> "ObjectFolder":
        child = copy(self)
        child._prefix = self._key(name)
        child.address = f"{self.address}/{name.strip('/')}"
        return child

    def create(self) -> None:
        # Found out now, and not after the first hour of work.
        key = self._key(f".{secrets.token_hex(8)}{TEMPORARY_SUFFIX}")
        self._try("can't write there", "", lambda: obstore.put(self._store, key, b""))
        self._try("can't delete files there", "", lambda: obstore.delete(self._store, key))

    def read(self, name: str) -> bytes:
        content = io.BytesIO()
        self._download(name, content)
        return content.getvalue()

    def read_range(self, name: str, start: int, num_bytes: int) -> bytes:
        return bytes(self._part(name, start, num_bytes).content)

    def size(self, name: str) -> int | None:
        try:
            return self._head(name)["size"]
        except FileNotFoundError:
            return None

    def files(self, folder: str = "") -> list[str]:
        found = [name for name in self._all_names(folder) if not any(part.startswith(".") for part in name.split("/"))]
        return sorted(found)

    def files_directly_in(self, folder: str = "") -> list[str]:
        return sorted(name for name in self._names_directly_in(folder) if not posixpath.basename(name).startswith("."))

    def folders(self, folder: str = "") -> list[str]:
        prefix = self._key(folder)
        found = self._try("can't be listed", folder, lambda: obstore.list_with_delimiter(self._store, prefix or None))
        names = (self._relative(path) for path in found["common_prefixes"])
        return sorted(name for name in names if not posixpath.basename(name).startswith("."))

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="upload-") as folder:
            path = Path(folder) / posixpath.basename(name)
            yield path
            with path.open("rb") as file:
                self._try("can't be written", name, lambda: self._upload(name, file))

    def take(self, path: Path, name: str) -> None:
        with path.open("rb") as file:
            self._try("can't be written", name, lambda: self._upload(name, file))
        path.unlink()

    def delete(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self._try("can't be deleted", name, lambda: obstore.delete(self._store, self._key(name)))

    def delete_folder(self, name: str) -> None:
        keys = [self._key(found) for found in self._all_names(name)]
        if keys:
            self._try("can't be deleted", name, lambda: obstore.delete(self._store, keys))

    @contextmanager
    def local_copy(self, name: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="download-") as folder:
            path = Path(folder) / posixpath.basename(name)
            with path.open("wb") as file:
                self._download(name, file)
            yield path

    def lock(self, work: str, name: str = "") -> AbstractContextManager[None]:
        key = self._key(f".{name}.lock" if name else ".lock")
        where = self._address_of(name)
        return leased(Lock(self._store, key, where, work, self._lease_times, self._patience))

    def remove_stale(self, folder: str = "") -> None:
        for name in self._names_directly_in(folder):
            base = posixpath.basename(name)
            if base.startswith(".") and base.endswith(TEMPORARY_SUFFIX):
                self.delete(name)

    def zarr_store(self, name: str) -> Any:
        # Imported here: most commands need no zarr.
        from ingest.zarrstore import zarr_folder

        return zarr_folder(connect(self._root, self._patience, self._key(name)))

    def _key(self, name: str) -> str:
        return f"{self._prefix}/{name.strip('/')}".strip("/")

    def _relative(self, key: str) -> str:
        return key.removeprefix(f"{self._prefix}/") if self._prefix else key

    def _address_of(self, name: str) -> str:
        return f"{self.address}/{name}" if name else self.address

    def _try(self, trouble: str, name: str, operation: Callable[[], T]) -> T:
        return attempt(operation, f"{self._address_of(name)} {trouble}", self._patience)

    def _all_names(self, folder: str) -> list[str]:
        prefix = self._key(folder)
        found = self._try("can't be listed", folder, lambda: obstore.list(self._store, prefix or None).collect())
        # A marker that some tools make for a folder comes as the prefix itself.
        return [self._relative(meta["path"]) for meta in found if meta["path"] != prefix]

    def _names_directly_in(self, folder: str) -> list[str]:
        prefix = self._key(folder)
        found = self._try("can't be listed", folder, lambda: obstore.list_with_delimiter(self._store, prefix or None))
        return [self._relative(meta["path"]) for meta in found["objects"] if meta["path"] != prefix]

    def _head(self, name: str) -> "ObjectMeta":
        return self._try("can't be read", name, lambda: obstore.head(self._store, self._key(name)))

    def _upload(self, name: str, file: IO[bytes]) -> None:
        file.seek(0)
        key = self._key(name)
        obstore.put(self._store, key, file, chunk_size=PART_BYTES, max_concurrency=_NUM_PARTS_AT_ONCE)

    def _download(self, name: str, file: IO[bytes]) -> None:
        """Writes the whole file, one version of it: should it be replaced meanwhile, the new one."""
        while True:
            file.seek(0)
            file.truncate()
            part = self._part(name, 0, PART_BYTES)
            try:
                while part.content:
                    file.write(part.content)
                    if file.tell() >= part.size:
                        break
                    part = self._part(name, file.tell(), PART_BYTES, part.e_tag)
            except PreconditionError:
                continue
            if file.tell() != part.size:
                raise OSError(f"{self._address_of(name)}: {file.tell()} bytes came, of {part.size}")
            return

    def _part(self, name: str, start: int, num_bytes: int, e_tag: str | None = None) -> _Part:
        """A range of a file, empty behind its end. Raises PreconditionError when the file is no more that version."""
        options: GetOptions = {"range": (start, start + num_bytes)}
        if e_tag is not None:
            options["if_match"] = e_tag

        def get() -> _Part | None:
            try:
                result = obstore.get(self._store, self._key(name), options=options)
            except GenericError as error:
                if status_of(error) == 416:
                    return None
                raise
            content, size = result.bytes(), result.meta["size"]
            if len(content) != min(num_bytes, size - start):
                raise GenericError("a part came shorter than it is")
            return _Part(content, size, result.meta["e_tag"])

        part = self._try("can't be read", name, get) if num_bytes > 0 else None
        if part is not None:
            return part
        meta = self._head(name)
        return _Part(b"", meta["size"], meta["e_tag"])


def open_object_store(url: str) -> Location:
    """The location at an s3://, gs:// or az:// (abfss://) URL; of file:// its folder.

    Raises InputError for a URL of another kind, or one with credentials in it.
    """
    scheme, _, rest = url.partition("://")
    if scheme.lower() != "file":
        return ObjectFolder(url)
    host, slash, path = rest.partition("/")
    if host not in ("", "localhost") or not slash:
        raise InputError("a file:// address needs a whole path, such as file:///data/store")
    return LocalFolder(Path(unquote(f"/{path}")))


def _split(address: str) -> tuple[str, str]:
    """SCHEME://BUCKET and the prefix. Errors don't repeat the address, as it may hold a secret."""
    scheme, _, rest = address.partition("://")
    scheme = scheme.lower()
    if scheme not in SCHEMES:
        known = ", ".join(f"{known}://" for known in (*SCHEMES, "file"))
        raise InputError(f"{scheme}:// is no address of a store; expected a folder, or one of {known}")
    bucket, _, prefix = rest.partition("/")
    # abfss://CONTAINER@ACCOUNT.dfs.core.windows.net names no user.
    has_user = ":" in bucket or ("@" in bucket and not scheme.startswith("abfs"))
    if has_user or "?" in rest:
        raise InputError(
            f"the {scheme}:// address has a user, a password or a query in it; write {scheme}://BUCKET/PREFIX, and "
            "give credentials in the environment (AWS_ACCESS_KEY_ID, ...), where nothing prints them"
        )
    prefix = prefix.strip("/")
    if not bucket:
        raise InputError(f"the {scheme}:// address names no bucket; write {scheme}://BUCKET/PREFIX")
    if prefix and any(part in ("", ".", "..") for part in prefix.split("/")):
        raise InputError(f"{address}: a part of the path is empty, '.' or '..'")
    return f"{scheme}://{bucket}", prefix
