"""Where stores lie: a folder, or a prefix in an object store. One interface, whole files only.

Names are relative, with '/'. A file appears whole or not at all. What goes wrong is an OSError (FileNotFoundError for
what isn't there), whose text never holds credentials.
"""

import re
import shutil
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from ingest.atomic import atomic_path, exclusive, move_in, remove_stale
from manifests.errors import InputError


class Location(ABC):
    """A folder, local or not. Its text is the address that people gave, which opens it again elsewhere."""

    def __init__(self, address: str) -> None:
        self.address = address

    def __str__(self) -> str:
        return self.address

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Location) and self.address == other.address

    def __hash__(self) -> int:
        return hash(self.address)

    @property
    def name(self) -> str:
        """The last part of the address."""
        return self.address.rstrip("/").rsplit("/", 1)[-1]

    @property
    @abstractmethod
    def folder(self) -> Path | None:
        """The folder on this machine's disks; None in an object store."""

    @abstractmethod
    def child(self, name: str) -> "Location":
        """The location of a folder inside this one; it need not exist."""

    @abstractmethod
    def create(self) -> None:
        """Makes sure that files can be written here."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """The content of a file."""

    @abstractmethod
    def read_range(self, name: str, start: int, num_bytes: int) -> bytes:
        """A part of a file; shorter where the file ends before."""

    @abstractmethod
    def size(self, name: str) -> int | None:
        """The size of a file, None where there is none."""

    @abstractmethod
    def files(self, folder: str = "") -> list[str]:
        """Sorted names, relative to this location, of all files under `folder`, at any depth, none where there is none.

        Hidden ones (a part that starts with '.') are left out.
        """

    @abstractmethod
    def files_directly_in(self, folder: str = "") -> list[str]:
        """As :meth:`files`, but of `folder` alone and not of its subfolders, which may hold millions."""

    @abstractmethod
    def folders(self, folder: str = "") -> list[str]:
        """Sorted names, relative to this location, of the folders directly in `folder`, hidden ones left out."""

    @abstractmethod
    def writing(self, name: str) -> AbstractContextManager[Path]:
        """Yields a path on this machine to write to; what was written appears as `name` unless an error comes out."""

    @abstractmethod
    def take(self, path: Path, name: str) -> None:
        """Moves a finished file of this machine, in a hidden folder of this location if it is one, to `name`."""

    @abstractmethod
    def delete(self, name: str) -> None:
        """Removes a file, if there is one."""

    @abstractmethod
    def delete_folder(self, name: str) -> None:
        """Removes all files below a folder, hidden ones too, if there is one."""

    @abstractmethod
    def local_copy(self, name: str) -> AbstractContextManager[Path]:
        """Yields a path on this machine that holds the file's content as long as the context lasts."""

    @abstractmethod
    def lock(self, work: str, name: str = "") -> AbstractContextManager[None]:
        """Holds a lock that no other process gets, here or elsewhere; it ends with this process, however that ends.

        Raises InputError, naming `work`, when another one holds it; at the end OSError when an object store's was lost.
        """

    @abstractmethod
    def remove_stale(self, folder: str = "") -> None:
        """Removes what killed writers left in `folder`; call it only when no writer is at work there."""

    @abstractmethod
    def zarr_store(self, name: str) -> Any:
        """What zarr.open_group takes for a folder in here."""

    def write(self, name: str, content: bytes | str) -> None:
        """Replaces a file (text as UTF-8)."""
        with self.writing(name) as path:
            path.write_bytes(content.encode() if isinstance(content, str) else content)

    def exists(self, name: str) -> bool:
        return self.size(name) is not None


class LocalFolder(Location):
    """A folder on this machine, or on a file system that all machines share."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self._path = path

    @property
    def folder(self) -> Path:
        return self._path

    @property
    def name(self) -> str:
        return self._path.resolve().name

    def child(self, name: str) -> "LocalFolder":
        return LocalFolder(self._path / name)

    def create(self) -> None:
        self._path.mkdir(parents=True, exist_ok=True)

    def read(self, name: str) -> bytes:
        return (self._path / name).read_bytes()

    def read_range(self, name: str, start: int, num_bytes: int) -> bytes:
        with (self._path / name).open("rb") as file:
            file.seek(start)
            return file.read(num_bytes)

    def size(self, name: str) -> int | None:
        try:
            status = (self._path / name).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return status.st_size if stat.S_ISREG(status.st_mode) else None

    def files(self, folder: str = "") -> list[str]:
        found = (path.relative_to(self._path) for path in (self._path / folder).rglob("*") if path.is_file())
        return sorted(path.as_posix() for path in found if not any(part.startswith(".") for part in path.parts))

    def files_directly_in(self, folder: str = "") -> list[str]:
        top = self._path / folder
        found = [path for path in top.iterdir() if path.is_file()] if top.is_dir() else []
        return sorted(path.relative_to(self._path).as_posix() for path in found if not path.name.startswith("."))

    def folders(self, folder: str = "") -> list[str]:
        top = self._path / folder
        found = [path for path in top.iterdir() if path.is_dir()] if top.is_dir() else []
        return sorted(path.relative_to(self._path).as_posix() for path in found if not path.name.startswith("."))

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        path = self._path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            yield temporary

    def take(self, path: Path, name: str) -> None:
        target = self._path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        move_in(path, target)

    def delete(self, name: str) -> None:
        (self._path / name).unlink(missing_ok=True)

    def delete_folder(self, name: str) -> None:
        if (self._path / name).is_dir():
            shutil.rmtree(self._path / name)

    @contextmanager
    def local_copy(self, name: str) -> Iterator[Path]:
        path = self._path / name
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file")
        yield path

    def lock(self, work: str, name: str = "") -> AbstractContextManager[None]:
        return exclusive(self._path, work, name)

    def remove_stale(self, folder: str = "") -> None:
        remove_stale(self._path / folder)

    def zarr_store(self, name: str) -> Path:
        return self._path / name


def open_location(address: "str | Path | Location") -> Location:
    """The location at a path or a URL (s3://, gs://, az://, file://).

    Raises InputError for a URL of another kind, or one with credentials in it.
    """
    if isinstance(address, Location):
        return address
    text = str(address)
    if "://" not in text:
        if re.match(r"[a-z][a-z0-9]+:/", text):  # as a Path makes of a URL, too
            raise InputError(f"{text.partition(':')[0]}:/ is neither a folder nor a URL; a URL has two slashes, ://")
        return LocalFolder(Path(text))
    # Imported here: most stores are folders, and workers start faster without it.
    from ingest.objectstore import open_object_store

    return open_object_store(text)
