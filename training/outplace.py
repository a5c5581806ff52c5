"""Where the result of `training predict` and `training embed` may go: nothing that isn't theirs is replaced."""

import json
from collections.abc import Sequence
from pathlib import Path

from ingest.outfile import check_outfile
from manifests.errors import InputError

ZARR = ".zarr"


def check_out(out: Path, suffixes: Sequence[str]) -> None:
    """Raises InputError where the name of `out` doesn't say what to write, or what lies there is no earlier result.

    By its suffix a recording or a model is never taken for one.
    """
    if out.suffix.lower() not in suffixes:
        raise InputError(f"--out {out} ends with none of {', '.join(suffixes)}, which say what is written")
    if out.suffix.lower() != ZARR or not out.exists():
        check_outfile(out)
    elif not _is_embeddings(out):
        raise InputError(f"{out} holds something else than embeddings of `training embed`; name another --out")


def _is_embeddings(path: Path) -> bool:
    """Whether `path` is a group that `training embed` wrote."""
    try:
        about = json.loads((path / "zarr.json").read_bytes())
        return {"format", "acm_sskd", "row", "embedding_dim"} <= set(about["attributes"])
    except (OSError, LookupError, TypeError, ValueError):
        return False
