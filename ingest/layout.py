"""Where the parts of a store lie, and store.json, which says what the store is."""

import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ingest.atomic import atomic_write
from manifests.errors import InputError
from manifests.geometry import FbankSpec, HogSpec
from manifests.vocabulary import Vocabulary

FORMAT = 1
DEFAULT_HOME = Path("data")
STORE_FILE = "store.json"
MANIFEST_FILE = "manifest.parquet"
CHECKSUM_FILE = "SHA256SUMS"
INDEX_FILE = "index.json"
SHARD_FOLDER = "shards"
TEACHER_FOLDER = "teachers"


class Snapshot(BaseModel):
    """A state of the store that a run can name: its first `num_shards` shards."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int
    num_shards: int
    num_clips: int  # clips that are in their shards
    mean: float  # of all fbank values
    std: float
    fingerprint: str  # sha256 over the recipe and the shards' own sha256


class StoreFile(BaseModel):
    """The content of store.json. A store without a snapshot has not been ingested to the end."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = FORMAT
    dataset: str = Field(pattern=r"^[A-Za-z0-9_+=,@-]+$")  # it becomes part of file names
    num_clips_asked: int = Field(ge=1)
    clips_per_shard: int = Field(ge=1)
    seed: int
    keep_audio: bool
    manifest_sha256: str
    fbank: FbankSpec
    hog: HogSpec
    vocabulary: Vocabulary
    versions: dict[str, str]
    snapshots: tuple[Snapshot, ...] = ()

    @property
    def num_shards(self) -> int:
        return -(-self.num_clips_asked // self.clips_per_shard)

    def shard_stem(self, shard: int) -> str:
        """NAME-000000"""
        return f"{self.dataset}-{shard:06d}"

    def recipe(self) -> dict[str, object]:
        """What decides the shards' content; two ingests of one recipe give one store."""
        return self.model_dump(mode="json", exclude={"snapshots", "versions"})


def choose_store(path: Path | None) -> Path:
    """`path`, or the one store under ./data. Raises InputError when there are none or several."""
    if path is not None:
        return path
    found = sorted(file.parent for file in DEFAULT_HOME.glob(f"*/{STORE_FILE}"))
    if not found:
        raise InputError(f"there is no store under ./{DEFAULT_HOME}; make one (`ingest demo`), or name its folder")
    if len(found) > 1:
        names = ", ".join(str(store) for store in found)
        raise InputError(
            f"there are several stores under ./{DEFAULT_HOME}: {names}; choose one (--store, or the argument)"
        )
    return found[0]


def tar_path(root: Path, store: StoreFile, shard: int) -> Path:
    return root / SHARD_FOLDER / f"{store.shard_stem(shard)}.tar"


def sidecar_path(root: Path, store: StoreFile, shard: int) -> Path:
    return root / SHARD_FOLDER / f"{store.shard_stem(shard)}.parquet"


def write_store_file(root: Path, store: StoreFile) -> None:
    """Replaces store.json."""
    atomic_write(root / STORE_FILE, json.dumps(store.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n")


def read_store_file(root: Path) -> StoreFile:
    """Reads store.json; raises InputError where there is none, or it is of another format, or damaged."""
    path = root / STORE_FILE
    try:
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            found = content.get("format") if isinstance(content, dict) else None
            raise InputError(f"{path}: format {found!r} is not one that this version reads (format {FORMAT})")
        return StoreFile.model_validate(content)
    except FileNotFoundError as error:
        raise InputError(
            f"{root} is not a store: it has no {STORE_FILE}; make one with `ingest`, or name another folder"
        ) from error
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror}") from error
    except (json.JSONDecodeError, UnicodeDecodeError, ValidationError) as error:
        raise InputError(
            f"{path} is damaged ({str(error).splitlines()[0]}); delete it and run the ingest command again"
        ) from error
