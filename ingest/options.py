"""Options that several commands of `ingest` share, each named once."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from ingest.fetching import FetchOptions
from ingest.plan import IngestOptions
from manifests.errors import InputError
from manifests.subset import Selection

StoreOption = Annotated[str | None, typer.Option("--store", help="The store's folder or URL. Default: data/NAME.")]
SeedOption = Annotated[int, typer.Option(help="Seed of the clips' order, of draws and of random crops.", min=0)]
FramesOption = Annotated[int, typer.Option("--num-frames", help="Frames of 10 ms per clip: 1024, 512 or 256.")]
ShardOption = Annotated[
    int | None, typer.Option(min=1, help="Clips a shard. Default: 1000, fewer for a corpus under 16,000 clips.")
]
KeepAudioOption = Annotated[bool, typer.Option("--keep-audio", help="Keep each clip's 16 kHz audio as KEY.flac.")]
WorkersOption = Annotated[
    int | None, typer.Option(min=0, help="Ray worker processes; 0: in this process, without Ray. Default: one a core.")
]
RayOption = Annotated[
    str | None,
    typer.Option("--ray-address", envvar="RAY_ADDRESS", help="A Ray cluster to run on. Default: this machine."),
]
MaxFailuresOption = Annotated[float, typer.Option(min=0.0, max=1.0, help="Stop when a larger share of clips fails.")]
RetryOption = Annotated[
    bool, typer.Option("--retry-failed", help="Try clips again that failed, whatever the reason was.")
]
AppendOption = Annotated[
    bool, typer.Option("--append", help="Add what the store was never asked for, as new shards and a new snapshot.")
]
DropSilentOption = Annotated[
    bool | None,
    typer.Option("--drop-silent/--keep-silent", help="Leave out clips of digital silence. Default: keep them."),
]


@dataclass(frozen=True)
class Common:
    """The options of every corpus; `drop_silent` is None where the user leaves it to the corpus."""

    store: str | None
    seed: int
    drop_silent: bool | None
    ingest: IngestOptions


@dataclass(frozen=True)
class Listed:
    """The options of corpora that are published as lists of YouTube ids.

    `source` is youtube, a URL with {id}, or a folder of files named by their ids.
    """

    metadata: Path | None
    skip_bad_rows: bool
    selection: Selection
    source: str
    raw: str | None
    fetch: FetchOptions


def _common(
    store: StoreOption = None,
    seed: SeedOption = 0,
    num_frames: FramesOption = 1024,
    clips_per_shard: ShardOption = None,
    keep_audio: KeepAudioOption = False,
    drop_silent: DropSilentOption = None,
    workers: WorkersOption = None,
    ray_address: RayOption = None,
    max_failures: MaxFailuresOption = 0.5,
    retry_failed: RetryOption = False,
    append: AppendOption = False,
) -> Common:
    if num_frames not in (256, 512, 1024):
        raise InputError(f"--num-frames {num_frames} is not possible; give 1024, 512 or 256")
    options = IngestOptions(
        num_frames=num_frames,
        clips_per_shard=clips_per_shard,
        keep_audio=keep_audio,
        num_workers=workers,
        ray_address=ray_address,
        max_failures=max_failures,
        retry_failed=retry_failed,
        append=append,
    )
    return Common(store, seed, drop_silent, options)


def _listed(
    source: Annotated[
        str, typer.Option(help="youtube, a folder of files named by their ids, or a URL such as http://host/{id}.m4a.")
    ] = "youtube",
    metadata: Annotated[
        Path | None, typer.Option(help="A folder with copies of the lists. Default: download them to STORE/lists.")
    ] = None,
    skip_bad_rows: Annotated[bool, typer.Option("--skip-bad-rows", help="Leave bad rows out, and count them.")] = False,
    limit: Annotated[int | None, typer.Option(help="Only so many clips, drawn by the seed.")] = None,
    subset: Annotated[str | None, typer.Option(help="as20k (the balanced list) or paper20k (20,000 drawn).")] = None,
    keys: Annotated[Path | None, typer.Option(help="A file of keys or YouTube ids, one a line.")] = None,
    rate: Annotated[float, typer.Option(help="Videos an hour at most, for the whole cluster.")] = 300.0,
    downloads: Annotated[int, typer.Option(min=1, help="Downloads at a time, for the whole cluster.")] = 3,
    time_limit: Annotated[
        float, typer.Option(min=1.0, max=86_400.0, help="Seconds until a download is given up.")
    ] = 600.0,
    cookies: Annotated[Path | None, typer.Option(help="A cookies.txt for the downloads. Default: none.")] = None,
    raw: Annotated[
        str | None, typer.Option(help="Where downloads are kept: a folder or URL. Default: STORE/raw.")
    ] = None,
    no_raw: Annotated[bool, typer.Option("--no-raw", help="Drop downloads once their shards are made.")] = False,
) -> Listed:
    if cookies is not None and not cookies.is_file():
        raise InputError(f"--cookies {cookies}: no such file; export one from your browser, or leave it out")
    if no_raw and raw is not None:
        raise InputError("--no-raw would drop downloads that others may keep in --raw; give one of the two")
    fetch = FetchOptions(
        source=source,
        rate_per_hour=rate,
        num_parallel=downloads,
        time_limit_s=time_limit,
        cookies=None if cookies is None else cookies.resolve(),
        keep_raw=not no_raw,
    )
    selection = Selection(keys_file=keys, subset=subset, limit=limit)  # type: ignore[arg-type]  # it refuses others
    return Listed(metadata, skip_bad_rows, selection, source, raw, fetch)


def takes(
    defaults: Mapping[str, Any] | None = None, /, **groups: Callable[..., Any]
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Replaces parameters of a command by the options of a group, from which the group makes the parameter's value.

    `defaults`: of options that differ for this command.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        options = {name: _options(group, defaults or {}) for name, group in groups.items()}

        @wraps(command)
        def with_options(**values: Any) -> None:
            made = {
                name: group(**{option.name: values.pop(option.name) for option in options[name]})
                for name, group in groups.items()
            }
            command(**values, **made)

        own = inspect.signature(command).parameters.values()
        kept = [parameter for parameter in own if parameter.name not in groups]
        shared = [option for parameter in own if parameter.name in groups for option in options[parameter.name]]
        with_options.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in (*kept, *shared)]
        )
        return with_options

    return decorate


def _options(group: Callable[..., Any], defaults: Mapping[str, Any]) -> list[inspect.Parameter]:
    parameters = inspect.signature(group).parameters.values()
    return [parameter.replace(default=defaults.get(parameter.name, parameter.default)) for parameter in parameters]


COMMON, LISTED = {"common": _common}, {"listed": _listed}
