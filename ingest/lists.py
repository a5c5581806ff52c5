"""The published lists of a corpus: downloaded once and kept, or the user's own copies."""

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ingest.fetch import download
from ingest.location import Location
from manifests.errors import InputError
from manifests.listing import is_web_page
from manifests.tables import existing_folder

_REMEDY = "download it by hand and name its folder with --metadata FOLDER"


@contextmanager
def open_lists(lists: Mapping[str, str], kept: Location, metadata: Path | None = None) -> Iterator[Path]:
    """A folder of this machine with `lists` (addresses by file name): `metadata`, where the user gives it, else `kept`.

    What `kept` lacks is downloaded into it, each list whole or not at all; of an object store the folder is a copy that
    goes with the context, and an InputError that names a file in it names the one in `kept` in its place. With
    `metadata` nothing is downloaded, and what is missing there is said by those who read it, since they know what could
    stand in its place.

    Raises InputError when `metadata` is no folder, or a list can't be downloaded or kept.
    """
    if metadata is not None:
        yield existing_folder(metadata)
        return
    for name, url in lists.items():
        if not kept.exists(name):
            _fetch(url, kept, name)
    if kept.folder is not None:
        yield kept.folder
        return
    with tempfile.TemporaryDirectory(prefix="lists-") as folder:
        for name in lists:
            with kept.local_copy(name) as path:
                shutil.copyfile(path, Path(folder, name))
        try:
            yield Path(folder)
        except InputError as error:
            raise InputError(str(error).replace(folder, str(kept))) from error


def _fetch(url: str, kept: Location, name: str) -> None:
    try:
        kept.create()  # a place that can't be written to is told before the download
        with kept.writing(name) as part:
            download(url, part, _REMEDY)
            with part.open("rb") as file:
                head = file.read(1000)
            if not head or is_web_page(head):
                what = "a web page" if head else "nothing"
                raise InputError(f"{url} gave {what} in place of the list {name}; {_REMEDY}")
    except OSError as error:
        raise InputError(f"can't keep {url} as {kept}/{name} ({error}); make room, or choose another folder") from error
