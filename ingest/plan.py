"""What is asked of an ingest, and the store that it would make."""

import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version

from ingest.fetching import FetchOptions
from ingest.layout import STORE_FILE, Part, StoreFile, read_store_file
from ingest.location import Location
from manifests.clips import Manifest
from manifests.geometry import FbankSpec, HogSpec

DEFAULT_CLIPS_PER_SHARD = 1000
# A small corpus is cut finer, so that it still keeps several workers busy.
MIN_SHARDS, MIN_CLIPS_PER_SHARD = 16, 50
# Libraries whose version can change the features.
RECORDED_LIBRARIES = ("torch", "torchaudio", "numpy", "soundfile", "soxr", "av")


@dataclass(frozen=True)
class IngestOptions:
    """How to ingest.

    `num_workers`: 0 in this process, None one a core (or all of a cluster's); `ray_address`: a running Ray cluster;
    `max_failures`: a share of the clips; `append`: add clips that the store was never asked for; `fetch`: how
    recordings come into the raw cache, for manifests that need one (None: not at all).
    """

    num_frames: int = 1024
    clips_per_shard: int | None = None
    keep_audio: bool = False
    drop_silent: bool = False
    num_workers: int | None = None
    ray_address: str | None = None
    max_failures: float = 0.5
    retry_failed: bool = False
    append: bool = False
    fetch: FetchOptions | None = field(default_factory=FetchOptions)


def default_clips_per_shard(num_clips: int) -> int:
    """1000, or fewer for a small corpus; depends on the manifest alone, so that shards don't depend on the machine."""
    return max(MIN_CLIPS_PER_SHARD, min(DEFAULT_CLIPS_PER_SHARD, -(-num_clips // MIN_SHARDS)))


def new_store(
    manifest: Manifest, options: IngestOptions, location: Location, lists: Mapping[str, str] | None
) -> StoreFile:
    """The store as it would be, were it made now; `lists`: sha256 of the files that the manifest was read from."""
    sha256 = manifest.sha256
    part = Part(num_clips_asked=len(manifest), manifest_sha256=sha256, wanted_sha256=sha256, lists=dict(lists or {}))
    size = options.clips_per_shard
    if size is None:
        # What is appended may be larger or smaller, and lies in shards of the size that the first clips gave.
        is_there = location.exists(STORE_FILE)
        size = read_store_file(location).clips_per_shard if is_there else default_clips_per_shard(len(manifest))
    return StoreFile(
        dataset=manifest.dataset,
        clips_per_shard=size,
        seed=manifest.seed,
        keep_audio=options.keep_audio,
        drop_silent=options.drop_silent,
        fbank=FbankSpec.model_validate({"num_frames": options.num_frames}),
        hog=HogSpec(),
        vocabulary=manifest.vocabulary,
        versions={"python": platform.python_version(), **{name: version(name) for name in RECORDED_LIBRARIES}},
        parts=(part,),
    )
