"""The forecast: what must hold for any guest and any link."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvmigrate.forecast import Forecast, forecast, learnt

MIB = 1 << 20
RATES = st.integers(0, 20_000 * MIB)
LINKS = st.integers(MIB, 10_000 * MIB)


def of(memory: int, dirty: int, link: int, limit_s: float = 0.3) -> Forecast:
    return forecast(memory_bytes=memory, dirty_rate=dirty, link_rate=link, link_from="test", downtime_limit_s=limit_s)


@given(st.integers(MIB, 1 << 40), RATES, LINKS, st.floats(0.01, 10))
def test_it_is_never_faster_than_one_pass_and_keeps_the_limit(
    memory: int, dirty: int, link: int, limit_s: float
) -> None:
    told = of(memory, dirty, link, limit_s)
    if told.seconds is None:
        assert dirty * 2 > link  # the passes at least halve otherwise
        assert told.advised != "gentle"
        return
    assert told.downtime_s is not None
    assert told.seconds >= memory / link
    assert told.downtime_s <= limit_s + 0.2 + 1e-6


@given(st.integers(MIB, 1 << 36), st.integers(0, 400 * MIB), st.integers(0, 400 * MIB))
def test_who_dirties_more_takes_longer(memory: int, one: int, other: int) -> None:
    less, more = sorted((one, other))
    first, second = of(memory, less, 1000 * MIB), of(memory, more, 1000 * MIB)
    assert first.seconds is not None
    assert second.seconds is not None
    # A last pass fewer may save its time, and the downtime limit bounds that.
    assert first.seconds <= second.seconds + 0.31


def test_what_is_advised() -> None:
    assert of(1024 * MIB, 10 * MIB, 100 * MIB).advised == "gentle"
    assert of(1024 * MIB, 90 * MIB, 100 * MIB).advised == "force"
    never = of(1024 * MIB, 200 * MIB, 100 * MIB)
    assert (never.seconds, never.advised) == (None, "post-copy")
    idle = of(1024 * MIB, 0, 100 * MIB)
    assert idle.passes == 2
    assert idle.seconds == pytest.approx(10.24 + 0.7)


def test_the_error_is_told_in_percent_of_the_outcome() -> None:
    told = of(1000 * MIB, 0, 100 * MIB)
    assert told.error_percent(10.7) == pytest.approx(0)
    assert told.error_percent(21.4) == pytest.approx(50)
    assert of(1024 * MIB, 200 * MIB, 100 * MIB).error_percent(3.0) is None


@given(st.lists(st.integers(0, 1000)))
def test_the_links_speed_is_one_that_was_reached(rates: list[int]) -> None:
    found = learnt(rates)
    assert (found is None) is (not any(rates))
    assert found is None or min(r for r in rates if r) <= found <= max(rates)
