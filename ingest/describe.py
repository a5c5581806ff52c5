"""A store's description for others: dataset card, Croissant metadata, coverage and the exact lists of its clips."""

from ingest.card import dataset_card
from ingest.coverage import (
    StoreFacts,
    count_coverage,
    coverage_csv,
    missing_csv,
    present_lists,
    present_names,
    splits_of,
)
from ingest.croissant import croissant_json

__all__ = [
    "CARD_FILE",
    "COVERAGE_FILE",
    "CROISSANT_FILE",
    "MISSING_FILE",
    "StoreFacts",
    "describe",
    "described_files",
    "is_description",
]

CARD_FILE = "README.md"
CROISSANT_FILE = "croissant.json"
COVERAGE_FILE = "coverage.csv"
MISSING_FILE = "missing.csv"


def describe(facts: StoreFacts) -> dict[str, str]:
    """File name -> text of all that describes a store; the same facts give the same bytes.

    README.md (a Hugging Face dataset card), croissant.json, coverage.csv, missing.csv, and present_SPLIT.txt for every
    split (present_all.txt where there are none). Raises InputError for a label that the vocabulary lacks.
    """
    coverage = count_coverage(facts)
    tables = {
        COVERAGE_FILE: coverage_csv(facts, coverage),
        MISSING_FILE: missing_csv(facts, coverage),
        **present_lists(facts, coverage),
    }
    return {
        CARD_FILE: dataset_card(facts, coverage),
        CROISSANT_FILE: croissant_json(facts, tables),
        **tables,
    }


def described_files(facts: StoreFacts) -> list[str]:
    """The names of the files that :func:`describe` makes, without making them."""
    return sorted([CARD_FILE, CROISSANT_FILE, COVERAGE_FILE, MISSING_FILE, *present_names(splits_of(facts))])


def is_description(name: str) -> bool:
    """Whether a file of that name is one that :func:`describe` may write."""
    known = (CARD_FILE, COVERAGE_FILE, CROISSANT_FILE, MISSING_FILE)
    return name in known or (name.startswith("present_") and name.endswith(".txt"))
