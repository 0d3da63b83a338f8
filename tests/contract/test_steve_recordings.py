"""The simulator against answers of real servers: 3.7.1, 3.9.0 and 3.14.1, exchange by exchange."""

import json
from datetime import UTC, datetime, timedelta
from importlib.resources import files

import pytest

from ocpp_billing.simulators.steve import Recording, Sample, SteveSimulator, recording_offset
from ocpp_billing.simulators.steve_recording import RECORDED
from ocpp_billing.steve.wire import decode_details, decode_transactions, fingerprint
from tests.contract.steve_wire import (
    BULK_TAGS,
    LAST_CALL_BEFORE_TRAFFIC,
    RECORDINGS,
    RELEASES,
    Exchange,
    differences,
    exchange,
    exchanges,
    get,
    recorded_json,
    register_tags,
    replay,
    send,
    transaction,
)

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


def before_traffic(release: str) -> list[Exchange]:
    return [e for e in exchanges(release) if e.number <= LAST_CALL_BEFORE_TRAFFIC[release]]


def after_traffic(release: str) -> list[Exchange]:
    return [e for e in exchanges(release) if e.number > LAST_CALL_BEFORE_TRAFFIC[release]]


@pytest.fixture
def simulator(request):
    with SteveSimulator(request.param) as simulator:
        simulator.set_clock(Recording(request.param).clock() + 7 * timedelta(seconds=1), frozen=True)
        yield simulator


each_release = pytest.mark.parametrize(
    ("simulator", "release"), [(r, r) for r in RELEASES], indirect=["simulator"], ids=RELEASES
)


@each_release
def test_errors_and_tags_on_the_empty_server_are_as_recorded(simulator, release):
    wrong = {}
    for step in before_traffic(release):
        if step.name == "tag-create-tag-fleet-01":
            register_tags(simulator)
        found = differences(simulator, step, replay(simulator, step))
        if found:
            wrong[str(step)] = found
        if step.name == "tag-create-tag-fleet-01":
            for id_tag in BULK_TAGS:
                simulator.add_tag(id_tag)
    assert wrong == {}


@each_release
def test_every_later_exchange_is_as_recorded(simulator, release):
    simulator.load_recording()
    steps = after_traffic(release)
    wrong = {str(s): found for s in steps if (found := differences(simulator, s, replay(simulator, s)))}
    assert wrong == {}
    assert len(steps) == 69


@each_release
def test_the_state_of_the_end_can_be_loaded_at_once(simulator, release):
    simulator.load_recording(state="end")
    assert get(simulator, "/transactions").json == exchange(release, "transactions-all-end").response["body"]
    changed = exchange(release, "tag-after-partial-put").response["body"]
    assert get(simulator, f"/ocppTags/{changed['ocppTagPk']}").json["maxActiveTransactionCount"] == 1


def play_the_scenarios(simulator: SteveSimulator, release: str) -> dict[str, int]:
    """What the charge points did before the recording, told by traffic.json and its README."""
    clock = Recording(release).clock()
    replies = {s["scenario"]: s for s in recorded_json(release, "traffic.json")["scenarios"]}
    arrived = datetime.fromisoformat(replies["boot"]["reply"]["currentTime"])
    unknown = exchange(release, "tags-blocked").response["body"][0]["note"]
    reported = datetime.fromisoformat(unknown.rpartition(" @ ")[2].removesuffix("."))
    ids = {}
    simulator.set_clock(arrived, frozen=True)
    berlin, paris = "CP-BERLIN-01", "CP-PARIS-07"
    for box in (berlin, paris):
        simulator.register_charge_box(box)

    def session(
        name, box, connector, id_tag, start, start_wh, stop, stop_wh, *, stop_tag=None, reason="Local"
    ):
        reply = simulator.begin(box, connector, id_tag, start, start_wh)
        told = replies.get(name, {}).get("start_reply")
        assert told is None or told["idTagInfo"]["status"] == reply.id_tag_status
        ids[name] = reply.transaction_id
        simulator.set_clock(simulator.now() + timedelta(milliseconds=20), frozen=True)
        simulator.stop_transaction(ids[name], box, stop, stop_wh, id_tag=stop_tag, reason=reason)

    start = clock - 3 * HOUR
    ids["plain"] = simulator.start_transaction(berlin, 1, "TAG-ALICE", start, 100_000)
    samples = [Sample(start + n * 15 * MINUTE, str(100_000 + 2057 * n)) for n in range(1, 6)]
    simulator.meter_values(berlin, 1, samples, ids["plain"])
    end = Sample(clock - 90 * MINUTE, "112345", context="Transaction.End")
    simulator.stop_transaction(ids["plain"], berlin, clock - 90 * MINUTE, 112_345, transaction_data=[end])
    session(
        "zero_energy", berlin, 1, "TAG-ALICE", clock - 84 * MINUTE, 112_345, clock - 82 * MINUTE, 112_345,
        reason="EVDisconnected",
    )  # fmt: skip
    session("negative", berlin, 1, "TAG-BOB", clock - 78 * MINUTE, 112_345, clock - 68 * MINUTE, 500)
    session(
        "stop_before_start", berlin, 1, "TAG-BOB", clock - 66 * MINUTE, 112_345, clock - 96 * MINUTE, 115_000
    )
    session("stop_in_future", berlin, 1, "TAG-BOB", clock - 60 * MINUTE, 115_000, clock + DAY, 118_000)
    session(
        "offline_9_days", paris, 1, "TAG-ALICE", clock - 9 * DAY, 5_000, clock - 9 * DAY + 4 * HOUR, 26_000
    )
    session("thirty_hours", paris, 1, "TAG-CAROL", clock - 30 * HOUR, 26_000, clock - HOUR, 70_000)
    simulator.set_clock(reported, frozen=True)
    session("unknown_tag", paris, 2, "UNKNOWN-TAG-1", clock - 2 * HOUR, 70_000, clock - 90 * MINUTE, 73_500)
    session(
        "tag_other_case", paris, 2, "tag-alice", clock - 72 * MINUTE, 73_500, clock - 42 * MINUTE, 75_000,
        stop_tag="TAG-ALICE",
    )  # fmt: skip
    session("duplicate_stop", paris, 2, "TAG-CAROL", clock - 50 * MINUTE, 75_000, clock - 30 * MINUTE, 78_000)
    simulator.stop_transaction(ids["duplicate_stop"], paris, clock - 29 * MINUTE, 78_400, delivered_wh=3_000)
    first = simulator.start_transaction(paris, 2, "TAG-CAROL", clock - 25 * MINUTE, 78_500)
    session(
        "duplicate_start", paris, 2, "TAG-CAROL", clock - 25 * MINUTE, 78_500, clock - 20 * MINUTE, 79_000
    )
    assert first == ids["duplicate_start"]
    session(
        "clock_1970", paris, 2, "TAG-CAROL", "1970-01-02T00:00:00Z", 79_000, "1970-01-02T01:00:00Z", 80_000
    )
    ids["mixed_units"] = simulator.start_transaction(paris, 1, "TAG-ALICE", clock - 40 * MINUTE, 80_000)
    at = clock - 35 * MINUTE
    samples = [
        Sample(at, "80.9", unit="kWh"),
        *(Sample(at, "300", phase=phase) for phase in ("L1", "L2", "L3")),
        Sample(at, "11000", unit="W", measurand="Power.Active.Import", context=None),
        Sample(clock - 30 * MINUTE, "81.8", unit="kWh"),
    ]
    simulator.meter_values(paris, 1, samples, ids["mixed_units"])
    simulator.stop_transaction(ids["mixed_units"], paris, clock - 25 * MINUTE, 82_700)
    ids["running"] = simulator.start_transaction(paris, 1, "TAG-DAVE", clock - 20 * MINUTE, 82_700)
    simulator.meter_values(paris, 1, [Sample(clock - 10 * MINUTE, "84500")], ids["running"])
    ids["zombie"] = simulator.start_transaction(paris, 3, "TAG-DAVE", clock - 5 * DAY, 1_000)
    simulator.meter_values(paris, 3, [Sample(clock - 5 * DAY + HOUR, "9000")], ids["zombie"])
    session("newer", paris, 3, "TAG-ALICE", clock - 4 * DAY, 9_500, clock - 4 * DAY + HOUR, 15_500)
    session("register_zero", paris, 3, "TAG-ALICE", clock - 3 * DAY, 0, clock - 3 * DAY + HOUR, 7_200)
    session(
        "child_tag", paris, 3, "TAG-FLEET-01", clock - 2 * DAY, 7_200, clock - 2 * DAY + 2 * HOUR, 29_400,
        stop_tag="TAG-FLEET",
    )  # fmt: skip
    return ids


@pytest.fixture
def played(simulator, release):
    simulator.add_tag("TAG-ALICE")
    register_tags(simulator)
    simulator.add_tag("TAG-FLEET-01", parent="TAG-FLEET", note="van 1")
    for id_tag in BULK_TAGS:
        simulator.add_tag(id_tag)
    for step in before_traffic(release):
        if step.name in {"tag-create-duplicate", "tag-create-unknown-parent"}:
            replay(simulator, step)
    return play_the_scenarios(simulator, release)


@each_release
def test_the_same_traffic_leaves_the_recorded_transactions_and_tags(simulator, release, played):
    assert get(simulator, "/transactions").json == exchange(release, "transactions-all").response["body"]
    assert get(simulator, "/ocppTags").json == exchange(release, "tags-all").response["body"]
    told = {s["scenario"]: s["tx"] for s in recorded_json(release, "traffic.json")["scenarios"] if "tx" in s}
    assert {name: played[name] for name in told} == told


@pytest.mark.parametrize(("simulator", "release"), [("3.14.1", "3.14.1")], indirect=["simulator"])
def test_the_same_traffic_leaves_the_recorded_meter_values(simulator, release, played):
    for name in (
        "details",
        "details-mixed-units",
        "details-mixed-units-all-values",
        "details-running",
        "details-zombie",
    ):
        recorded = exchange(release, name)
        assert differences(simulator, recorded, replay(simulator, recorded)) == {}, name


def test_the_details_of_a_transaction_show_the_same_session_as_the_list():
    """Else every look at meter values would seem to find another session under a known number."""

    def read(name):
        return json.dumps(exchange("3.14.1", name).response["body"]).encode()

    listed = {row.steve_id: fingerprint(row) for row in decode_transactions(read("transactions-all")).rows}
    for name in ("details", "details-mixed-units", "details-running", "details-zombie"):
        row = decode_details(read(name)).transaction
        assert fingerprint(row) == listed[row.steve_id], name


TRUTH_WH = {
    "plain": 12_345, "zero_energy": 0, "stop_before_start": 2_655, "stop_in_future": 3_000,
    "offline_9_days": 21_000, "thirty_hours": 44_000, "unknown_tag": 3_500, "tag_other_case": 1_500,
    "duplicate_stop": 3_000, "duplicate_start": 500, "clock_1970": 1_000, "mixed_units": 2_700, "newer": 6_000,
    "register_zero": 7_200, "child_tag": 22_200, "negative": None, "running": None, "zombie": None,
}  # fmt: skip


@each_release
def test_the_ledger_tells_the_charge_points_truth_whatever_the_api_shows(simulator, release, played):
    assert simulator.truth() == {played[name]: wh for name, wh in TRUTH_WH.items()}


@each_release
def test_a_loaded_recording_brings_the_same_truth(simulator, release, played):
    driven = simulator.truth()
    simulator.load_recording()
    assert simulator.truth() == driven


# -- one transaction over time -----------------------------------------------------------------


@each_release
def test_a_transaction_evolves_as_recorded(simulator, release):
    steps = [step["after_it_the_api_shows"] for step in recorded_json(release, "evolution.json")["steps"]]
    names = [step["step"] for step in recorded_json(release, "evolution.json")["steps"]]
    begun = datetime.fromisoformat(steps[0]["startTimestamp"])
    simulator.set_clock(begun + 5 * HOUR, frozen=True)
    for number in range(1, 7):
        simulator.register_charge_box(f"CP-BEFORE-{number}")
    simulator.add_tag("TAG-ALICE")
    simulator.skip_ids(steps[0]["id"] - 1)
    shown = []

    def arrive():
        simulator.set_clock(simulator.now() + timedelta(seconds=3), frozen=True)

    def show(transaction_id):
        shown.append(transaction(simulator, transaction_id))

    first = simulator.start_transaction("CP-EVO-01", 1, "TAG-ALICE", begun, 0)
    show(first)
    for box, after, wh in (
        ("CP-EVO-01", HOUR, 5000),
        ("CP-EVO-01", HOUR + MINUTE, 5600),
        ("CP-OTHER", 2 * HOUR, 7700),
    ):
        arrive()
        simulator.stop_transaction(first, box, begun + after, wh)
        show(first)
    if len(names) > 4:
        again = datetime.fromisoformat(steps[4]["startTimestamp"])
        second = simulator.start_transaction("CP-EVO-01", 2, "TAG-ALICE", again, 3000)
        sampled = datetime.fromisoformat(steps[5]["stopTimestamp"])
        simulator.meter_values("CP-EVO-01", 2, [Sample(sampled, "3600")], second)
        show(second)
        arrive()
        assert send(simulator, "PATCH", f"/transactions/{second}/stop").status == 200
        show(second)
        arrive()
        simulator.stop_transaction(second, "CP-EVO-01", again + HOUR, 9000)
        show(second)
    assert dict(zip(names, shown, strict=True)) == dict(zip(names, steps, strict=True))


# -- the recording as a starting point ---------------------------------------------------------


@pytest.mark.parametrize("release", RECORDED)
def test_a_shifted_recording_ends_an_hour_ago_and_keeps_its_distances(release):
    now = datetime(2031, 3, 4, 5, 6, 7, 890_000, tzinfo=UTC)
    with SteveSimulator(release) as simulator:
        simulator.set_clock(now, frozen=True)
        simulator.load_recording(shift=recording_offset(now, release))
        rows = {row["id"]: row for row in get(simulator, "/transactions").json}
        stops = [row["stopTimestamp"] for row in rows.values() if row["stopTimestamp"]]
        times = [datetime.fromisoformat(t) for t in stops + [row["startTimestamp"] for row in rows.values()]]
        assert max(t for t in times if t <= now) == datetime(2031, 3, 4, 4, 6, 7, tzinfo=UTC)
        assert rows[12]["startTimestamp"] == "1970-01-02T00:00:00.000Z"
        assert rows[14]["stopTimestamp"] is None
        future = [t for t in times if t > now]
        assert len(future) == (0 if release == "3.14.1" else 1)
        [unknown] = get(simulator, "/ocppTags?blocked=TRUE").json
        assert f"started @ {rows[8]['startTimestamp']}" in unknown["note"]
        if release == "3.14.1":
            [value] = get(simulator, "/transactions/14").json["values"]
            assert rows[14]["startTimestamp"] < value["valueTimestamp"] < now.isoformat()


def test_a_release_that_was_not_recorded_says_which_were():
    with SteveSimulator("3.12") as simulator:
        with pytest.raises(
            ValueError, match=r"3\.12\.0 was not recorded; choose one of 3\.14\.1, 3\.9\.0, 3\.7\.1"
        ):
            simulator.load_recording()
        simulator.load_recording("3.14")
        assert len(get(simulator, "/transactions").json) == 18


def test_what_is_packaged_is_what_was_recorded():
    packaged = files("ocpp_billing.simulators").joinpath("recordings")
    found = 0
    for folder in packaged.iterdir():
        for file in folder.iterdir():
            assert file.read_bytes() == (RECORDINGS / folder.name / file.name).read_bytes()
            found += 1
    assert found == 20
    assert json.loads(packaged.joinpath("steve-3.9.0", "traffic.json").read_text())["release"] == "3.9.0"
