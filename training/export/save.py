"""`training export`: a folder of files that were checked, whole or absent."""

import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from ingest.atomic import atomic_write, move_in
from manifests.errors import InputError
from training.checkpoint import WEIGHTS_FILE, load_checkpoint
from training.export.card import CARD_FILE, Exported, model_card
from training.export.check import check_file, choose_clips, expect
from training.export.facts import describe, find_origin
from training.export.formats import ONNX_FILE, TORCH_FILE, Source, why_not, write_files
from training.export.graph import WaveformModel
from training.export.kinds import Format
from training.written import writing

# Not one of those that a run takes for a killed writer's files, should the folder lie in a run's.
STAGING_SUFFIX = ".exporting"


@dataclass(frozen=True)
class Export:
    """What was written, and in words why some of it was not, and what it was checked on."""

    files: list[Exported]
    left_out: list[str]
    checked_on: str


def export_model(path: Path, formats: Sequence[Format], out: Path, check_files: Sequence[Path] = ()) -> Export:
    """Writes the checkpoint `path` in some formats, in all that can be had where none is named, and checks each file.

    Raises InputError when `out` holds files, a format that is named can't be had, a clip of `check_files` can't be
    read, or a file fails its check; then `out` is as it was.
    """
    _check_free(out)
    checkpoint = replace(load_checkpoint(path), optimiser=None)
    chosen, left_out = list(dict.fromkeys(formats)) or list(Format), []
    for form in list(chosen):
        if reason := why_not(form, checkpoint):
            if formats:
                raise InputError(f"--format {form} can't be had: {reason}")
            chosen.remove(form)
            left_out.append(f"{form} was left out: {reason}")
    origin = find_origin(path, checkpoint.about.store_fingerprint)
    clips = choose_clips(check_files, origin.store, checkpoint.about.window)
    source = Source(checkpoint, WaveformModel(checkpoint), describe(checkpoint, origin.sha256))
    with _staged(out) as staging:
        names = write_files(chosen, source, staging)
        weights = [name for name in names if name in (WEIGHTS_FILE, TORCH_FILE, ONNX_FILE)]
        expected = expect(checkpoint, clips)
        differences = {name: check_file(staging / name, expected) for name in weights}
        files = [Exported(name, (staging / name).stat().st_size, differences.get(name)) for name in names]
        card = model_card(checkpoint, source.description, origin, files, clips.said)
        atomic_write(staging / CARD_FILE, card)
    return Export(files, left_out, clips.said)


def _check_free(out: Path) -> None:
    """Raises InputError unless `out` is absent or an empty folder."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; name a folder with --out")
    if out.exists() and (there := sorted(path.name for path in out.iterdir())):
        some = ", ".join(there[:3]) + (" ..." if len(there) > 3 else "")
        raise InputError(f"{out} holds files already ({some}); choose another folder with --out, or delete it")


@contextmanager
def _staged(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its place at the end; on any error it is removed."""
    out = out.resolve()
    staging = out.with_name(f".{out.name}.{secrets.token_hex(8)}{STAGING_SUFFIX}")
    with writing(out):
        staging.mkdir(parents=True)
        try:
            yield staging
            move_in(staging, out)
        finally:
            if staging.exists():
                shutil.rmtree(staging)
