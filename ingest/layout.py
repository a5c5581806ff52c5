"""Where the parts of a store lie, and store.json, which says what the store is."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ingest.location import LocalFolder, Location, open_location
from manifests.errors import InputError, first_line
from manifests.geometry import FbankSpec, HogSpec
from manifests.vocabulary import Vocabulary

FORMAT = 1
DEFAULT_HOME = Path("data")
STORE_FILE = "store.json"
MANIFEST_FILE = "manifest.parquet"
INDEX_FILE = "index.parquet"
WIDS_FILE = "index.json"
CHECKSUM_FILE = "SHA256SUMS"
SHARD_FOLDER = "shards"
TEACHER_FOLDER = "teachers"
# What lies in a store's folder besides the store: downloads and what they were listed by.
SOURCE_FOLDERS = ("raw", "lists", "source")


class Part(BaseModel):
    """Clips that were asked for together; they lie in shards of their own, behind those of the parts before."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_clips_asked: int = Field(ge=1)
    manifest_sha256: str  # of the part's rows
    wanted_sha256: str  # of the list that asked for them: the same, unless some of it was in the store already
    lists: dict[str, str] = {}  # sha256 of the files that the list was read from
    is_retry: bool = False  # its clips are in earlier parts, failed there, and were tried again


class Snapshot(BaseModel):
    """A state of the store that a run can name: its first `num_shards` shards, which never change again."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int
    num_parts: int
    num_shards: int
    num_rows: int  # of the manifest: a clip that was tried again has several
    num_clips_asked: int
    num_clips: int  # clips that are in their shards
    mean: float  # of all fbank values
    std: float
    fingerprint: str  # sha256 over the recipe and the shards' own sha256


class StoreFile(BaseModel):
    """The content of store.json. A part that no snapshot covers has not been ingested to the end."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = FORMAT
    dataset: str = Field(pattern=r"^[A-Za-z0-9_+=,@-]+$")  # it becomes part of file names
    clips_per_shard: int = Field(ge=1)
    seed: int
    keep_audio: bool
    drop_silent: bool = False
    fbank: FbankSpec
    hog: HogSpec
    vocabulary: Vocabulary
    versions: dict[str, str]
    parts: tuple[Part, ...]
    snapshots: tuple[Snapshot, ...] = ()

    @property
    def num_rows(self) -> int:
        """Rows of the manifest, unfinished parts among them."""
        return sum(part.num_clips_asked for part in self.parts)

    @property
    def num_shards(self) -> int:
        return sum(self.shards_of_part(part) for part in self.parts)

    def shards_of_part(self, part: Part) -> int:
        return -(-part.num_clips_asked // self.clips_per_shard)

    @property
    def num_shards_published(self) -> int:
        """Shards that a snapshot names: they are never made again with another content."""
        return self.snapshots[-1].num_shards if self.snapshots else 0

    def shard_rows(self) -> Iterator[tuple[int, int, int]]:
        """Of every shard in turn: its part, and its rows [first, stop) of the manifest."""
        first = 0
        for number, part in enumerate(self.parts):
            end = first + part.num_clips_asked
            while first < end:
                stop = min(first + self.clips_per_shard, end)
                yield number, first, stop
                first = stop

    def shard_stem(self, shard: int) -> str:
        """NAME-000000"""
        return f"{self.dataset}-{shard:06d}"

    def tar_name(self, shard: int) -> str:
        return f"{SHARD_FOLDER}/{self.shard_stem(shard)}.tar"

    def sidecar_name(self, shard: int) -> str:
        return f"{SHARD_FOLDER}/{self.shard_stem(shard)}.parquet"

    def recipe(self) -> dict[str, object]:
        """What decides, with a part's clips, the shards' content; two ingests of one recipe give one store."""
        return self.model_dump(mode="json", exclude={"parts", "snapshots", "versions"})

    def recipe_sha256(self, part: int) -> str:
        """Names the recipe together with the clips of a part."""
        content = [self.recipe(), self.parts[part].manifest_sha256]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def choose_store(address: str | None) -> Location:
    """The store at `address`, or the one store under ./data. Raises InputError when there are none or several."""
    if address is not None:
        return open_location(address)
    found = sorted(file.parent for file in DEFAULT_HOME.glob(f"*/{STORE_FILE}"))
    if not found:
        raise InputError(f"there is no store under ./{DEFAULT_HOME}; make one (`ingest demo`), or name its folder")
    if len(found) > 1:
        names = ", ".join(str(store) for store in found)
        raise InputError(
            f"there are several stores under ./{DEFAULT_HOME}: {names}; choose one (--store, or the argument)"
        )
    return LocalFolder(found[0])


def store_text(store: StoreFile) -> str:
    """The exact content of store.json."""
    return json.dumps(store.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n"


def write_store_file(location: Location, store: StoreFile) -> None:
    """Replaces store.json."""
    location.write(STORE_FILE, store_text(store))


def read_store_file(location: Location) -> StoreFile:
    """Reads store.json; raises InputError where there is none, or it is of another format, or damaged."""
    path = f"{location}/{STORE_FILE}"
    try:
        content = json.loads(location.read(STORE_FILE))
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            found = content.get("format") if isinstance(content, dict) else None
            raise InputError(f"{path}: format {found!r} is not one that this version reads (format {FORMAT})")
        return StoreFile.model_validate(content)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(
            f"{location} is not a store: it has no {STORE_FILE}; make one with `ingest`, or name another folder"
        ) from error
    except OSError as error:
        # The errors of object stores begin with the address already.
        raise InputError(f"{path} can't be read: {error.strerror}" if error.strerror else str(error)) from error
    except (json.JSONDecodeError, UnicodeDecodeError, ValidationError) as error:
        raise InputError(
            f"{path} is damaged ({first_line(error)}); delete it and run the ingest command again"
        ) from error
