"""The geometry of what is drawn."""

from datetime import date, timedelta
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from ocpp_billing.portal.charts import day_chart, round_up, stack
from ocpp_billing.portal.wording import STATES

ENERGIES = st.integers(min_value=0, max_value=10**13)
BY_STATE = st.fixed_dictionaries(dict.fromkeys(STATES, ENERGIES))


def percent(text):
    assert text.endswith("%")
    return Decimal(text[:-1])


@given(BY_STATE)
def test_the_segments_fill_the_bar_exactly_without_gap_or_overlap(energies_wh):
    segments = stack(energies_wh)
    at = Decimal(0)
    for segment in segments:
        assert percent(segment.x) == at
        at += percent(segment.width)
    assert at == (100 if any(energies_wh.values()) else 0)


@given(BY_STATE)
def test_every_state_with_energy_can_be_seen(energies_wh):
    segments = stack(energies_wh)
    assert [segment.state for segment in segments] == [state for state, wh in energies_wh.items() if wh]
    assert all(percent(segment.width) >= Decimal("0.5") for segment in segments)


def test_shares_are_in_proportion():
    confirmed, held = stack({"confirmed": 3_000, "held": 1_000})
    assert (confirmed.width, held.width) == ("75.00%", "25.00%")


@given(ENERGIES)
def test_the_scale_ends_at_a_round_number_above_everything(energy_wh):
    top_wh = round_up(energy_wh)
    assert top_wh >= max(energy_wh, 1000)
    assert str(top_wh).rstrip("0") in {"1", "2", "5"}


DAYS = [date(2026, 11, 1) + timedelta(days=number) for number in range(30)]
PARTS = st.dictionaries(
    st.sampled_from(DAYS),
    st.dictionaries(st.sampled_from(list(STATES)), st.integers(min_value=-(10**9), max_value=10**9)),
)


@given(PARTS)
def test_columns_stay_within_the_drawing(energies_wh):
    chart = day_chart(DAYS, energies_wh, list(STATES), 180)
    for column in chart.columns:
        assert 0 <= percent(column.x) < percent(column.x) + percent(column.width) <= 100
        bottom = 180
        for block in column.blocks:
            assert int(block.y) + int(block.height) == bottom
            bottom = int(block.y)
        assert bottom >= -len(STATES)  # a part too small to see is drawn one pixel high


@given(PARTS)
def test_the_figures_below_the_chart_add_up_to_what_was_given(energies_wh):
    chart = day_chart(DAYS, energies_wh, list(STATES), 180)
    given_wh = sum(sum(parts.values()) for parts in energies_wh.values())
    assert chart.total_wh == given_wh
    assert sum(sum(row) for _, row in chart.rows) == given_wh


def test_a_day_without_energy_has_no_column_and_no_row():
    chart = day_chart(DAYS, {DAYS[3]: {"held": 2_000}}, list(STATES), 180)
    assert [column.day for column in chart.columns if column.blocks] == [DAYS[3]]
    assert chart.rows == [(DAYS[3], [2_000])]
    assert chart.states == ["held"]
