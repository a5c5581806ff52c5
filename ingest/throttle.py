"""When the next recording may be asked for: pure policies for one dispatcher. Times are seconds since the epoch.

Nothing here sleeps or looks at a clock.
"""

import hashlib
import math
from datetime import UTC, datetime

from manifests.errors import InputError

HOUR_S = 3600.0


class Limiter:
    """Evenly spaced starts: what was not started while nothing was to do is not caught up with."""

    def __init__(self, per_hour: float) -> None:
        """Raises InputError unless `per_hour` is above 0; math.inf is no limit."""
        if not per_hour > 0:
            raise InputError(f"--rate {per_hour:g} is not possible; give the number of videos an hour, such as 300")
        self._interval_s = HOUR_S / per_hour
        self._last = -math.inf

    def wait_s(self, now: float) -> float:
        """How long until the next start, 0 where it may be now."""
        # Never longer than the interval, should somebody set the clock back.
        return min(max(self._last + self._interval_s - now, 0.0), self._interval_s)

    def started(self, now: float) -> None:
        """Takes note of a start."""
        self._last = now


class Backoff:
    """When an item that failed may be tried again: after longer and longer, and only so often in one run.

    The waits are spread, so that what failed together isn't tried together; each is the same in every run.
    """

    def __init__(self, base_s: float = 5.0, cap_s: float = 600.0, max_tries: int = 4) -> None:
        """`base_s` is the longest wait after the first failure; it doubles with each one, up to `cap_s`."""
        self._base_s, self._cap_s, self._max_tries = base_s, cap_s, max_tries
        # Of items that failed and have tries left, which is why few are here: tries so far, not before.
        self._failed: dict[str, tuple[int, float]] = {}

    def wait_s(self, item: str, now: float) -> float:
        """How long until an item's next try, 0 where it may be now."""
        if item not in self._failed:
            return 0.0
        # Never longer than the cap, should somebody set the clock back.
        return min(max(self._failed[item][1] - now, 0.0), self._cap_s)

    def failed(self, item: str, now: float, retry_after_s: float | None = None) -> bool:
        """Takes note of a failure; whether the item may be tried again in this run. It is forgotten otherwise.

        `retry_after_s` is what the server asked for; up to the cap, the wait is no shorter.
        """
        num_tries = self._failed.pop(item, (0, 0.0))[0] + 1
        if num_tries >= self._max_tries:
            return False
        wait_s = max(self._spread_s(item, num_tries), retry_after_s or 0.0)
        self._failed[item] = (num_tries, now + min(wait_s, self._cap_s))
        return True

    def succeeded(self, item: str) -> None:
        """Forgets an item's failures."""
        self._failed.pop(item, None)

    def _spread_s(self, item: str, num_tries: int) -> float:
        """Between half and all of the wait, by the item's name."""
        digest = hashlib.sha256(f"{num_tries} {item}".encode()).digest()
        fraction = int.from_bytes(digest[:4]) / (1 << 32)
        return float(min(self._base_s * 2 ** (num_tries - 1), self._cap_s) * (1 + fraction) / 2)


class BlockGuard:
    """Pauses everything when the server wants fewer requests; each time in a row for twice as long."""

    FIRST_PAUSE_S = 15 * 60.0
    LONGEST_PAUSE_S = 6 * HOUR_S
    MAX_BLOCKS = 8

    def __init__(self) -> None:
        self.num_blocks = 0
        self._until = -math.inf

    @property
    def gave_up(self) -> bool:
        """Whether so many blocks came in a row that waiting seems of no use."""
        return self.num_blocks >= self.MAX_BLOCKS

    def blocked(self, now: float, retry_after_s: float | None = None) -> None:
        """Takes note of a block, with the wait that the server asked for."""
        pause_s = retry_after_s or 0.0
        # What was under way when the pause began is refused with it, and is no further block.
        if now >= self._until:
            self.num_blocks += 1
            pause_s = max(pause_s, self.FIRST_PAUSE_S * 2 ** (min(self.num_blocks, self.MAX_BLOCKS) - 1))
        self._until = max(self._until, now + min(pause_s, self.LONGEST_PAUSE_S))

    def succeeded(self, now: float) -> None:
        """Takes note of a success: the row of blocks ends, unless it was under way when the pause began."""
        if now >= self._until:
            self.num_blocks = 0

    def wait_s(self, now: float) -> float:
        """How long the pause lasts, 0 without one."""
        return min(max(self._until - now, 0.0), self.LONGEST_PAUSE_S)

    def paused_until_text(self, now: float) -> str | None:
        """When the pause ends, as local wall-clock time with its offset from UTC; None without one."""
        if not self.wait_s(now):
            return None
        return datetime.fromtimestamp(self._until, UTC).astimezone().isoformat(" ", "minutes")

    def save(self) -> dict[str, object]:
        """What a later run must know, for JSON."""
        return {"num_blocks": self.num_blocks, "paused_until": self._until if self.num_blocks else None}

    @classmethod
    def load(cls, state: dict[str, object], now: float) -> "BlockGuard":
        """A guard that respects the pause in a saved state, if that is still on; what can't be read counts as none."""
        guard = cls()
        until, num_blocks = state.get("paused_until"), state.get("num_blocks")
        if isinstance(until, int | float) and isinstance(num_blocks, int) and num_blocks > 0 and until > now:
            # Once more at least, since somebody started this run; and no longer than any pause lasts.
            guard.num_blocks = min(num_blocks, cls.MAX_BLOCKS - 1)
            guard._until = min(float(until), now + cls.LONGEST_PAUSE_S)
        return guard
