"""Cuts long files into consecutive clips."""

import hashlib
from collections.abc import Iterator
from dataclasses import replace

from ingest.decoder import decode_duration_s
from ingest.ledger import ClipError
from ingest.sourcefile import source_path
from manifests.clips import MAX_KEY_BYTES, Clip, Manifest, make_manifest
from manifests.errors import InputError


def segment_manifest(manifest: Manifest, segment_s: float) -> Manifest:
    """Every clip replaced by consecutive clips of `segment_s`; a rest shorter than half of that is dropped.

    Keys get the start in milliseconds. A file whose length can't be read stays one clip, for the ledger to name.
    """
    if not 0.1 <= segment_s <= 86_400:
        raise InputError(f"--segment {segment_s:g} is not possible; give seconds from 0.1 to 86400")
    clips = [part for clip in manifest.clips() for part in _segments(manifest, clip, round(segment_s * 1000))]
    return make_manifest(manifest.dataset, clips, manifest.vocabulary, manifest.sources, seed=manifest.seed)


def _segment_key(key: str, start_ms: int) -> str:
    """KEY_000030000; a key that would become too long is cut, and told apart by a hash."""
    ending = f"_{start_ms:09d}"
    if len(key.encode()) + len(ending) > MAX_KEY_BYTES:
        ending = f"_{hashlib.sha256(key.encode()).hexdigest()[:8]}{ending}"
        key = key.encode()[: MAX_KEY_BYTES - len(ending)].decode(errors="ignore")
    return key + ending


def _segments(manifest: Manifest, clip: Clip, segment_ms: int) -> Iterator[Clip]:
    first_ms, end_ms = clip.start_ms or 0, clip.end_ms
    if end_ms is None:
        try:
            duration_s = decode_duration_s(source_path(manifest.root, clip.source))
        except ClipError:
            duration_s = None
        if duration_s is None:
            yield clip
            return
        end_ms = int(duration_s * 1000)
    num_segments = max(1, (end_ms - first_ms + segment_ms // 2) // segment_ms)
    for number in range(num_segments):
        start_ms = first_ms + number * segment_ms
        stop_ms = min(start_ms + segment_ms, end_ms)
        yield replace(clip, key=_segment_key(clip.key, start_ms), start_ms=start_ms, end_ms=max(stop_ms, start_ms + 1))
