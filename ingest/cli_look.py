"""The commands `ingest status` and `ingest doctor`."""

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from ingest.layout import choose_store
from ingest.options import RayOption
from ingest.status import Status, read_status
from manifests.findings import is_fit, print_findings


def status(
    store: Annotated[
        str | None, typer.Argument(help="The store's folder or URL. Default: the only one under ./data.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Coverage per class and the reasons of failures, of a finished or unfinished store.

    Example: ingest status data/esc50
    """
    found = read_status(choose_store(store))
    if as_json:
        print(json.dumps(_as_json(found)))
    else:
        _print_status(found)


def doctor(
    store: Annotated[str | None, typer.Option(help="The folder or URL that a store is to go to.")] = None,
    ray_address: RayOption = None,
    ray: Annotated[bool, typer.Option("--ray/--no-ray", help="Start a Ray to see whether it works.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
) -> None:
    """What an ingest needs, and what of it is missing here. Exit status 1 when it can't do without.

    Example: ingest doctor --store s3://bucket/audioset
    """
    from ingest.doctor import examine

    findings = examine(store, ray_address, with_ray=ray)
    print_findings(findings, as_json=as_json)
    if not is_fit(findings):
        raise typer.Exit(1)


def _as_json(status: Status) -> dict[str, object]:
    return {
        "dataset": status.store.dataset,
        "num_shards": status.store.num_shards,
        "num_shards_done": status.num_shards_done,
        "num_shards_published": status.store.num_shards_published,
        "num_asked": status.num_asked,
        "num_ok": status.num_ok,
        "num_failed": status.num_failed,
        "reasons": {str(reason): count for reason, count in status.reasons.items()},
        "classes": {name: {"asked": asked, "ok": status.present[name]} for name, asked in sorted(status.asked.items())},
    }


def _print_status(status: Status) -> None:
    console = Console(markup=False)  # names of classes and files may hold brackets
    store = status.store
    done = "finished"
    if store.num_shards > store.num_shards_published and status.num_shards_done == store.num_shards:
        done = "all made, but not closed: too many clips failed; see --retry-failed and --max-failures"
    elif store.num_shards > store.num_shards_published:
        done = "not finished: run the ingest command again to go on"
    console.print(f"{store.dataset}: {status.num_shards_done} of {store.num_shards} shards, {done}")
    console.print(f"clips: {status.num_ok} in shards, {status.num_failed} failed, {status.num_asked} asked for")
    if status.reasons:
        reasons = Table("reason", "clips", "for instance")
        for reason, count in status.reasons.most_common():
            reasons.add_row(reason, str(count), status.examples[reason])
        console.print(reasons)
    if status.asked:
        coverage = Table("class", "in shards", "asked for", "coverage")
        for name, asked in sorted(status.asked.items()):
            present = status.present[name]
            coverage.add_row(name, str(present), str(asked), f"{present / asked:.1%}")
        console.print(coverage)
