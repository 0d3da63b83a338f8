"""What meter values say about the end of a session, and what StEvE would write if it were closed."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocpp_billing.simulators.steve_central import CentralSystem
from ocpp_billing.simulators.steve_release import Release
from ocpp_billing.simulators.steve_store import Sample, to_ms
from ocpp_billing.steve.evidence import (
    Evidence,
    ManualStop,
    NextStart,
    last_heard_at,
    last_register,
    predict_manual_stop,
)
from ocpp_billing.steve.wire import MeterValue

START = datetime(2026, 11, 22, 8, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def at(minutes: float) -> datetime:
    return START + minutes * MINUTE


def value(minutes: float | None, text: str, **given: str | None) -> MeterValue:
    """A total register in Wh, unless something else is given."""
    fields = {
        "context": "Sample.Periodic",
        "format": None,
        "measurand": "Energy.Active.Import.Register",
        "location": None,
        "unit": "Wh",
        "phase": None,
        **given,
    }
    return MeterValue(measured_at=None if minutes is None else at(minutes), value=text, **fields)


def registers(*texts: str) -> list[MeterValue]:
    """One reading per minute."""
    return [value(minute, text) for minute, text in enumerate(texts, start=1)]


def read(values: list[MeterValue], before: datetime | None = None) -> int | None:
    found = last_register(values, 1_000, START, before)
    return None if found is None else found.stop_wh


# -- which values count --------------------------------------------------------------------------------


def test_the_last_register_is_the_evidence_with_its_time():
    assert last_register(registers("1000", "5000", "9000"), 1_000, START, None) == Evidence(
        "meter_value", 9_000, at(3)
    )


def test_the_order_in_which_values_come_means_nothing():
    for shuffled in itertools.permutations(registers("1000", "5000", "9000", "9500")):
        assert read(list(shuffled)) == 9_500


@pytest.mark.parametrize(
    "other",
    [
        value(9, "3000", phase="L1"),
        value(9, "3000", phase="L1-N"),
        value(9, "11000", measurand="Power.Active.Import", unit="W"),
        value(9, "60", measurand="SoC", unit="Percent"),
        value(9, "9000", measurand="Energy.Active.Export.Register"),
        value(9, "9000", measurand="Energy.Active.Import.Interval"),
        value(9, "9000", measurand="Energy.Reactive.Import.Register", unit="varh"),
        value(9, "9000", unit="kvarh"),
        value(9, "OCMF|{}|{}", format="SignedData"),
        value(9, "9000", format="SignedData"),
        value(9, "9000", location="Inlet"),
        value(9, "9000", location="EV"),
        value(9, "9000", location="Body"),
        value(9, ""),
        value(9, "NaN"),
        value(9, "Infinity"),
        value(9, "12_000"),
        value(9, "٩٠٠٠"),
        value(9, "9,5"),
        value(9, "1e99"),
        value(9, "9" * 41),
        value(9, "4294967296"),
        value(9, "999"),
        value(9, "-9000"),
        value(-1, "9000"),
        value(None, "9000"),
        MeterValue(at(9), None, None, None, None, None, None, None),
    ],
    ids=lambda other: f"{other.value} {other.unit} {other.phase or other.location or other.measurand}"[:60],
)
def test_what_is_no_total_energy_register_of_the_session_does_not_count(other):
    assert read([other]) is None
    assert read([*registers("2000", "4000"), other]) == 4_000


@pytest.mark.parametrize(
    "sent",
    [
        {"measurand": None, "unit": None, "context": None},
        {"measurand": "", "unit": "", "format": "", "location": "", "phase": "", "context": ""},
        {"format": "Raw", "location": "Outlet", "context": "Transaction.End"},
        {"context": "Trigger"},
    ],
)
def test_what_a_charger_does_not_send_has_the_default_of_ocpp(sent):
    assert read([value(1, "9000", **sent)]) == 9_000


@pytest.mark.parametrize(
    ("text", "unit", "stop_wh"),
    [
        ("81.8", "kWh", 81_800),
        ("16.1", "kWh", 16_100),
        ("81.81234", "kWh", 81_812),
        ("1234567.899", "kWh", 1_234_567_899),
        ("9000.9", "Wh", 9_000),
        (" 9000 ", "Wh", 9_000),
        ("9e3", "Wh", 9_000),
        ("9000.", "Wh", 9_000),
        ("+9000", "Wh", 9_000),
    ],
)
def test_a_register_becomes_whole_wh_without_rounding_up(text, unit, stop_wh):
    assert read([value(1, text, unit=unit)]) == stop_wh


def test_values_after_the_next_session_began_are_its_own():
    values = registers("2000", "4000", "6000", "8000")
    assert read(values, before=at(3)) == 6_000
    assert read(values, before=at(2.5)) == 4_000
    assert read(values, before=at(0.5)) is None


def test_a_session_whose_start_was_lost_takes_values_of_any_time():
    assert last_register([value(-500, "2000"), value(1, "3000")], 1_000, None, None) == Evidence(
        "meter_value", 3_000, at(1)
    )


def test_mixed_units_and_phases_of_the_recorded_session_read_as_one_register():
    recorded = [
        value(5, "80.9", unit="kWh"),
        *(value(5, "300", phase=phase) for phase in ("L1", "L2", "L3")),
        value(10, "81.8", unit="kWh"),
    ]
    assert last_register(recorded, 80_000, START, None) == Evidence("meter_value", 81_800, at(10))


# -- readings that contradict one another --------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "stop_wh"),
    [
        (("2000", "5000", "9000", "0"), 9_000),
        (("2000", "5000", "9000", "1000"), 9_000),
        (("2000", "999999", "5000", "9000"), 9_000),
        (("2000", "1500", "5000", "9000"), 9_000),
        (("2000", "5000", "5000", "5000", "3000"), 5_000),
        (("2000", "40000", "5000", "41000", "6000", "7000"), 7_000),
    ],
)
def test_a_stray_reading_is_outvoted(texts, stop_wh):
    assert read(registers(*texts)) == stop_wh


@pytest.mark.parametrize(
    "texts", [("9000", "5000"), ("2000", "5000", "3000"), ("2000", "9000", "2500", "9500", "2600")]
)
def test_where_nobody_can_say_which_reading_is_the_stray_one_there_is_no_evidence(texts):
    assert read(registers(*texts)) is None


rising = st.lists(st.integers(1_000, 2_000_000), min_size=1, max_size=40).map(sorted)


@given(rising)
def test_of_a_register_that_never_falls_the_last_reading_counts(readings):
    assert read(registers(*map(str, readings))) == readings[-1]


@given(rising, st.data())
def test_the_unit_makes_no_difference(readings, data):
    in_kwh = [data.draw(st.booleans()) for _ in readings]
    values = [
        value(minute, str(Decimal(wh) / 1000), unit="kWh") if kilo else value(minute, str(wh))
        for minute, (wh, kilo) in enumerate(zip(readings, in_kwh, strict=True))
    ]
    assert read(values) == readings[-1]


@given(rising.filter(lambda readings: len(readings) >= 3), st.integers(1_000, 3_000_000), st.data())
def test_one_stray_reading_among_three_never_becomes_evidence_unless_it_fits_at_the_end(
    readings, stray, data
):
    place = data.draw(st.integers(0, len(readings) - 1))
    mixed = [*readings[:place], stray, *readings[place:]]
    assert read(registers(*map(str, mixed))) in {readings[-1], None}


@given(st.lists(st.integers(0, 5_000), max_size=9), st.integers(0, 10))
def test_the_evidence_ends_the_only_longest_run_among_all_selections(readings, before):
    """Second implementation: every selection of readings that never falls, the longest ones, their ends."""
    usable = [wh for minute, wh in enumerate(readings, start=1) if wh >= 1_000 and minute <= before]
    runs = [
        chosen
        for size in range(1, len(usable) + 1)
        for chosen in itertools.combinations(usable, size)
        if list(chosen) == sorted(chosen)
    ]
    longest = max((len(run) for run in runs), default=0)
    ends = {run[-1] for run in runs if len(run) == longest}
    expected = ends.pop() if len(ends) == 1 else None
    assert read(registers(*map(str, readings)), before=at(before)) == expected


def test_a_charger_is_heard_by_any_value_that_has_a_time():
    assert last_heard_at([]) is None
    assert last_heard_at([value(None, "9000")]) is None
    assert last_heard_at([value(7, "300", phase="L1"), value(3, "9000")]) == at(7)


# -- what StEvE would write ----------------------------------------------------------------------------


def predict(values: list[MeterValue], *, next_start: NextStart | None = None, skips_falls: bool = True):
    return predict_manual_stop(
        values, start_wh=1_000, started_at=START, next_start=next_start, skips_falls=skips_falls
    )


def test_the_recorded_running_session_is_closed_at_its_only_value():
    assert predict([value(10, "84500")]) == ManualStop(84_500, at(10), "meter_value")


def test_without_values_steve_takes_the_next_start_if_it_is_higher():
    assert predict([], next_start=NextStart(at(60), 9_500)) == ManualStop(9_500, at(60), "next_start")
    assert predict([], next_start=NextStart(at(60), 0)) == ManualStop(1_000, at(60), "next_start")


def test_without_anything_steve_writes_no_energy_and_no_duration():
    assert predict([]) == ManualStop(1_000, START, "none")
    assert predict([value(1, "9000", format="SignedData"), value(2, "17", unit="W")]) == ManualStop(
        1_000, START, "none"
    )


def test_steve_rounds_up_what_its_floating_point_makes_of_kwh():
    assert predict([value(1, "16.1", unit="kWh")]).stop_wh == 16_101
    assert predict([value(1, "1000.2")]).stop_wh == 1_001


def test_steve_does_not_tell_a_phase_from_the_total():
    values = [value(5, "9000"), value(6, "3000", phase="L1")]
    assert predict(values, skips_falls=False).stop_wh == 3_000
    assert predict(values, skips_falls=True).stop_wh == 9_000


samples = st.lists(
    st.builds(
        Sample,
        at=st.integers(0, 50).map(at),
        value=st.one_of(
            st.integers(0, 4_000).map(str),
            st.decimals(0, 4_000, places=3).map(str),
            st.sampled_from(["", "NaN", "garbage"]),
        ),
        unit=st.sampled_from([None, "", "Wh", "kWh", "W"]),
        measurand=st.sampled_from([None, "Energy.Active.Import.Register", "Power.Active.Import"]),
        format=st.sampled_from([None, "Raw", "SignedData"]),
        phase=st.sampled_from([None, "L1"]),
    ),
    max_size=8,
)


@given(
    st.sampled_from(["3.12", "3.13", "3.14"]),
    samples,
    st.none() | st.tuples(st.integers(1, 60).map(at), st.integers(0, 5_000)),
)
def test_what_is_predicted_is_what_the_simulated_steve_writes(release, sent, following):
    central = CentralSystem(Release.parse(release), lambda: at(500))
    steve_id = central.start("CP-1", 1, "TAG", START, 1_000).transaction_id
    if following is not None:
        central.start("CP-1", 1, "TAG", *following)
    central.meter_values("CP-1", 1, sent, steve_id)
    row = central.store.row_of(steve_id)
    shown = [
        MeterValue(at(0) + timedelta(milliseconds=v.at_ms - to_ms(START)), v.value, v.context, v.format,
                   v.measurand, v.location, v.unit, v.phase)
        for v in central.details(row, energy_only=True)
    ]  # fmt: skip

    predicted = predict_manual_stop(
        shown,
        start_wh=1_000,
        started_at=START,
        next_start=None if following is None else NextStart(*following),
        skips_falls=central.release.monotonic_manual_stop,
    )
    central.manual_stop(steve_id)

    assert predicted.stop_wh == central.store.stop_wh[row]
    assert to_ms(predicted.stopped_at) == central.store.stop_ms[row]
