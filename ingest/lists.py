"""The published lists of a corpus: downloaded once and kept, or the user's own copies."""

from collections.abc import Mapping
from pathlib import Path

from ingest.atomic import atomic_path
from ingest.fetch import download
from manifests.errors import InputError
from manifests.listing import is_web_page
from manifests.tables import existing_folder

_REMEDY = "download it by hand and name its folder with --metadata FOLDER"


def fetch_lists(lists: Mapping[str, str], into: Path, metadata: Path | None = None) -> Path:
    """The folder that holds `lists` (addresses by file name): `metadata`, where the user gives it, else `into`.

    What `into` lacks is downloaded into it, each list whole or not at all. With `metadata` nothing is downloaded, and
    what is missing there is said by those who read it, since they know what could stand in its place.

    Raises InputError when `metadata` is no folder, or a list can't be downloaded or kept.
    """
    if metadata is not None:
        return existing_folder(metadata)
    for name, url in lists.items():
        if not (into / name).is_file():
            _fetch(url, into / name)
    return into


def _fetch(url: str, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as part:
            download(url, part, _REMEDY)
            with part.open("rb") as file:
                head = file.read(1000)
            if not head or is_web_page(head):
                what = "a web page" if head else "nothing"
                raise InputError(f"{url} gave {what} in place of the list {path.name}; {_REMEDY}")
    except OSError as error:
        raise InputError(f"can't keep {url} as {path} ({error}); make room, or choose another folder") from error
