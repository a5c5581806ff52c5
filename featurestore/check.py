"""What a check of a teacher found."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """One thing looked at: passed, failed, or (None) only said; a warning is what may have good reasons."""

    name: str
    passed: bool | None
    detail: str
    is_warning: bool = False
