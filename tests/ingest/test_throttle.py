"""No burst, no endless retry, no request during a pause, whatever happens when."""

import json
import math
from datetime import datetime
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.throttle import HOUR_S, Backoff, BlockGuard, Limiter
from manifests.errors import InputError

NOW = 1_800_000_000.0
PAUSE_S, LONGEST_S = BlockGuard.FIRST_PAUSE_S, BlockGuard.LONGEST_PAUSE_S
steps_s = st.floats(0.0, 5_000.0)
waits_s = st.none() | st.floats(0.0, 1e6)


def starts(limiter: Limiter, idle_s: list[float]) -> list[float]:
    """Starts as soon as may be, after having nothing to do for each of `idle_s`."""
    now, times = NOW, []
    for idle in idle_s:
        now += idle
        now += limiter.wait_s(now)
        while limiter.wait_s(now):  # a clock moves in steps, and the sum above was rounded
            now = math.nextafter(now, math.inf)
        limiter.started(now)
        times.append(now)
    return times


@given(st.floats(0.5, 100_000.0), st.lists(st.just(0.0) | steps_s, min_size=2, max_size=100))
def test_no_hour_has_more_starts_than_the_rate(per_hour: float, idle_s: list[float]) -> None:
    times = starts(Limiter(per_hour), idle_s)
    for time in times:
        window_s = HOUR_S - 1e-3  # sums of seconds since the epoch are rounded to microseconds
        assert sum(time <= other < time + window_s for other in times) <= math.ceil(per_hour)
    assert all(later - earlier >= HOUR_S / per_hour - 1e-5 for earlier, later in pairwise(times))


@given(st.floats(0.5, 100_000.0), st.integers(2, 50))
def test_with_enough_to_do_the_rate_is_reached(per_hour: float, num_starts: int) -> None:
    times = starts(Limiter(per_hour), [0.0] * num_starts)
    assert times[-1] - times[0] == pytest.approx((num_starts - 1) * HOUR_S / per_hour, abs=1e-4)


def test_300_an_hour_is_one_in_12_seconds() -> None:
    limiter = Limiter(300)
    assert limiter.wait_s(NOW) == 0
    limiter.started(NOW)
    assert [limiter.wait_s(NOW + passed) for passed in (0, 5, 11.5, 12, 1e6)] == [12, 7, 0.5, 0, 0]
    assert limiter.wait_s(NOW - 1e6) == 12  # somebody set the clock back


def test_no_limit_and_no_rate() -> None:
    unlimited = Limiter(math.inf)
    unlimited.started(NOW)
    assert unlimited.wait_s(NOW) == 0
    for per_hour in (0.0, -1.0, math.nan):
        with pytest.raises(InputError, match="--rate"):
            Limiter(per_hour)


@given(st.text(), waits_s)
def test_waits_double_with_a_spread_and_tries_end(item: str, retry_after_s: float | None) -> None:
    backoff = Backoff(base_s=5, cap_s=15, max_tries=5)
    assert backoff.wait_s(item, NOW) == 0
    for longest_s in (5, 10, 15, 15):
        assert backoff.failed(item, NOW, retry_after_s)
        shortest_s = max(longest_s / 2, min(retry_after_s or 0, 15))
        rounding_s = 1e-6  # of seconds since the epoch, which have 53 bits
        waited_s = backoff.wait_s(item, NOW)
        assert shortest_s - rounding_s <= waited_s <= max(longest_s, shortest_s) + rounding_s
        assert backoff.wait_s(item, NOW + 20) == 0
        assert backoff.wait_s(item, NOW - 1e9) == 15  # the clock was set back
    assert not backoff.failed(item, NOW)
    assert backoff.wait_s(item, NOW) == 0


def test_four_tries_each_the_same_in_every_run_and_spread_over_items() -> None:
    def waits(item: str) -> list[float]:
        backoff, found = Backoff(), []
        while backoff.failed(item, 0.0):
            found.append(backoff.wait_s(item, 0.0))
        return found

    assert waits("a") == waits("a")
    assert len(waits("a")) == 3
    first = sorted(waits(f"item{number}")[0] for number in range(200))
    assert first[0] < 2.6 < 4.9 < first[-1]
    assert len(set(first)) == 200


def test_a_success_makes_a_failure_be_forgotten() -> None:
    backoff = Backoff(max_tries=2)
    assert backoff.failed("a", NOW)
    backoff.succeeded("a")
    backoff.succeeded("never seen")
    assert backoff.wait_s("a", NOW) == 0
    assert backoff.failed("a", NOW)
    assert not backoff.failed("a", NOW)


def test_pauses_double_up_to_six_hours_and_then_it_gives_up() -> None:
    guard, now, pauses_s = BlockGuard(), NOW, []
    assert (guard.wait_s(now), guard.paused_until_text(now), guard.gave_up) == (0, None, False)
    while not guard.gave_up:
        guard.blocked(now)
        pauses_s.append(guard.wait_s(now))
        now += guard.wait_s(now)
    assert pauses_s == [60 * minutes for minutes in (15, 30, 60, 120, 240, 360, 360, 360)]


def test_the_servers_wish_counts_where_it_is_longer_and_not_endless() -> None:
    for retry_after_s, expected_s in ((1.0, PAUSE_S), (2_000.0, 2_000.0), (1e9, LONGEST_S), (None, PAUSE_S)):
        guard = BlockGuard()
        guard.blocked(NOW, retry_after_s)
        assert guard.wait_s(NOW) == expected_s


def test_what_was_under_way_neither_counts_twice_nor_ends_a_pause() -> None:
    guard = BlockGuard()
    guard.blocked(NOW)
    guard.blocked(NOW + 5)
    guard.succeeded(NOW + 6)
    assert (guard.num_blocks, guard.wait_s(NOW)) == (1, PAUSE_S)
    guard.blocked(NOW + 7, retry_after_s=1_000)
    assert (guard.num_blocks, guard.wait_s(NOW + 7)) == (1, 1_000)
    guard.blocked(NOW + 1_007)
    assert (guard.num_blocks, guard.wait_s(NOW + 1_007)) == (2, 2 * PAUSE_S)
    guard.succeeded(NOW + 1_007 + 2 * PAUSE_S)
    assert guard.num_blocks == 0
    guard.blocked(NOW + 10_000)
    assert guard.wait_s(NOW + 10_000) == PAUSE_S
    assert guard.wait_s(NOW - 1e9) == LONGEST_S  # the clock was set back


@given(st.lists(st.tuples(steps_s, st.sampled_from(("blocked", "succeeded")), waits_s), max_size=60))
def test_pauses_are_respected_by_a_later_run_too(events: list[tuple[float, str, float | None]]) -> None:
    guard, now = BlockGuard(), NOW
    for step_s, event, retry_after_s in events:
        now += step_s
        ends = now + guard.wait_s(now)
        if event == "blocked":
            guard.blocked(now, retry_after_s)
        else:
            guard.succeeded(now)
        assert now + guard.wait_s(now) >= ends  # nothing shortens a pause
        assert guard.wait_s(now) <= LONGEST_S
        later = BlockGuard.load(json.loads(json.dumps(guard.save())), now)
        assert later.wait_s(now) == guard.wait_s(now)
        assert not later.gave_up


def test_a_pause_that_is_over_is_forgotten() -> None:
    guard = BlockGuard()
    guard.blocked(NOW)
    guard.blocked(NOW + PAUSE_S)
    later = BlockGuard.load(guard.save(), NOW + 4 * PAUSE_S)
    assert (later.num_blocks, later.wait_s(NOW + 4 * PAUSE_S)) == (0, 0)
    # While it is on, the next block is the third in the row.
    later = BlockGuard.load(guard.save(), NOW + 2 * PAUSE_S)
    later.blocked(NOW + 3 * PAUSE_S)
    assert later.wait_s(NOW + 3 * PAUSE_S) == 4 * PAUSE_S


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"num_blocks": 0, "paused_until": None},
        {"num_blocks": "2", "paused_until": NOW + 60},
        {"num_blocks": 2, "paused_until": "tomorrow"},
        {"num_blocks": 2, "paused_until": math.nan},
        {"num_blocks": -2, "paused_until": NOW + 60},
    ],
)
def test_a_state_that_cant_be_read_is_none(state: dict[str, object]) -> None:
    assert BlockGuard.load(state, NOW).wait_s(NOW) == 0


def test_a_pause_from_a_wrong_clock_ends() -> None:
    guard = BlockGuard.load({"num_blocks": 900, "paused_until": NOW * 2}, NOW)
    assert (guard.wait_s(NOW), guard.gave_up) == (LONGEST_S, False)


def test_the_end_of_a_pause_is_told_as_wall_clock_time() -> None:
    guard = BlockGuard()
    guard.blocked(NOW)
    text = guard.paused_until_text(NOW)
    assert text is not None
    assert abs(datetime.fromisoformat(text).timestamp() - NOW - PAUSE_S) < 60
    assert guard.paused_until_text(NOW + PAUSE_S) is None
