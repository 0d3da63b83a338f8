"""What we find out about each release, by asking a simulated StEvE of it."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ocpp_billing.simulators.server import Fault
from ocpp_billing.simulators.steve import DEFAULT_PASSWORD, SteveSimulator
from ocpp_billing.steve.capabilities import Capabilities, override, probe
from ocpp_billing.steve.client import SteveClient, SteveSettings
from ocpp_billing.steve.errors import (
    ApiDisabled,
    BadRequest,
    FeatureMissing,
    InvalidSettings,
    NotFound,
    SteveError,
    Unauthorised,
    WrongCredentialKind,
)

LABELS = {
    "3.6": "3.6/3.7",
    "3.7": "3.6/3.7",
    "3.8": "3.8",
    "3.9": "3.9",
    "3.10": "3.10",
    "3.11": "3.11",
    "3.12": "3.12",
    "3.13": "3.13+",
    "3.14": "3.13+",
}
FROM_3_8_TO_3_10 = ("3.8", "3.9", "3.10")
START = datetime(2026, 11, 20, 8, tzinfo=UTC)


def settings(steve: SteveSimulator, **changes: Any) -> SteveSettings:
    return SteveSettings(**{"url": steve.url, "key": DEFAULT_PASSWORD, "username": "admin"} | changes)


def a_session(steve: SteveSimulator, number: int = 1, *, start: datetime = START, stop: bool = True) -> int:
    transaction_id = steve.start_transaction("CP-1", number, "TAG-1", start, 1_000)
    if stop:
        assert steve.stop_transaction(transaction_id, "CP-1", start + timedelta(hours=1), 4_000) is None
    return transaction_id


@pytest.fixture(params=LABELS)
def steve(request):
    with SteveSimulator(request.param) as simulator:
        simulator.add_tag("TAG-1")
        yield simulator


def label_of(steve: SteveSimulator) -> str:
    return LABELS[".".join(str(steve.release).split(".")[:2])]


def of_release(release: str):
    simulator = SteveSimulator(release)
    simulator.add_tag("TAG-1")
    return simulator


@pytest.mark.parametrize("stopped", [True, False])
def test_each_release_is_recognised_by_a_transaction_running_or_stopped(steve, stopped: bool):
    known_id = a_session(steve, stop=stopped)
    with SteveClient(settings(steve)) as client:
        found = probe(client, known_id)
    assert found == override(str(steve.release))
    assert found.release == label_of(steve)
    assert found.complete


def test_probing_takes_four_calls_at_most_and_asks_for_one_transaction_only(steve):
    for number in range(1, 30):
        a_session(steve, number)
    with SteveClient(settings(steve)) as client:
        client.locate()
        steve.requests.clear()
        probe(client, 7)
    asked = [request["path"] for request in steve.requests]
    assert len(asked) <= 4
    assert all("transactionPk=7" in path or "/transactions/7?" in path for path in asked)


def test_an_empty_steve_leaves_open_only_what_needs_a_transaction(steve):
    with SteveClient(settings(steve)) as client:
        found = probe(client, None)
        if label_of(steve) in FROM_3_8_TO_3_10:
            assert (found.release, found.complete) == ("3.8-3.10", False)
            assert found.window_basis is None
            assert found.window_type == "STOPPED"
            found = probe(client, a_session(steve))
        assert found == override(str(steve.release))


@pytest.mark.parametrize("release", FROM_3_8_TO_3_10)
def test_a_transaction_that_is_gone_proves_nothing(release: str):
    with of_release(release) as steve, SteveClient(settings(steve)) as client:
        a_session(steve)
        assert not probe(client, 4_711).complete


@pytest.mark.parametrize("release", FROM_3_8_TO_3_10)
def test_a_transaction_that_really_began_in_1990_proves_nothing(release: str):
    with of_release(release) as steve, SteveClient(settings(steve)) as client:
        known_id = a_session(steve, start=datetime(1990, 1, 1, 12, tzinfo=UTC))
        assert not probe(client, known_id).complete


@pytest.mark.parametrize("release", FROM_3_8_TO_3_10)
def test_a_malformed_transaction_proves_nothing(release: str):
    with of_release(release) as steve, SteveClient(settings(steve)) as client:
        known_id = a_session(steve)
        (shown,) = json.loads(client.ask_transactions({"transactionPk": str(known_id)}))
        broken = steve.inject(shown | {"startValue": "NaN"})
        assert client.transactions(ids=[broken]).malformed[0].reason.startswith("startValue")
        assert not probe(client, broken).complete


@pytest.mark.parametrize("release", ["3.7", "3.9", "3.14"])
def test_a_refusal_that_is_not_in_steves_words_proves_nothing(release: str):
    with of_release(release) as steve, SteveClient(settings(steve)) as client:
        known_id = a_session(steve)
        client.locate()
        steve.add_fault(Fault("html", status=400))
        with pytest.raises(BadRequest):
            probe(client, known_id)


@pytest.mark.parametrize("release", ["3.7", "3.9", "3.11", "3.14"])
def test_a_fault_in_the_middle_of_probing_is_raised_and_nothing_is_concluded(release: str):
    with of_release(release) as steve, SteveClient(settings(steve)) as client:
        known_id = a_session(steve)
        client.locate()
        steve.add_fault(Fault("status", status=503, skip=1))
        with pytest.raises(SteveError, match="503"):
            probe(client, known_id)


def test_a_window_of_the_type_proposed_is_a_window_on_every_release(steve):
    old = a_session(steve, 1, start=START - timedelta(days=300))
    new = a_session(steve, 2)
    with SteveClient(settings(steve)) as client:
        found = probe(client, new)
        answer = client.transactions(
            type=found.window_type, from_=START - timedelta(days=1), to=START + timedelta(days=1)
        )
        assert [row.steve_id for row in answer.rows] == [new]
        everything = client.transactions(from_=START - timedelta(days=1), to=START + timedelta(days=1))
    # Where windows of STOPPED compare the stop, windows of all types are none.
    assert ([row.steve_id for row in everything.rows] == [new, old]) is (found.window_basis == "stop")


def test_what_a_window_compares_is_as_found(steve):
    started_before = steve.start_transaction("CP-1", 1, "TAG-1", START - timedelta(days=3), 0)
    steve.stop_transaction(started_before, "CP-1", START, 5_000)
    with SteveClient(settings(steve)) as client:
        found = probe(client, started_before)
        rows = client.transactions(
            type=found.window_type, from_=START - timedelta(hours=1), to=START + timedelta(hours=1)
        ).rows
    assert (len(rows) == 1) is (found.window_basis == "stop")


def test_transactions_by_id_are_complete_on_every_release(steve):
    ids = [a_session(steve, number) for number in range(1, 6)]
    with SteveClient(settings(steve)) as client:
        found = probe(client, ids[0])
        answer = client.transactions_by_id([*ids, 999_999], id_lists=found.id_lists)
    assert sorted(row.steve_id for row in answer.rows) == ids


def test_features_are_there_exactly_where_they_were_found(steve):
    known_id = a_session(steve)
    running = a_session(steve, 2, stop=False)
    with SteveClient(settings(steve)) as client:
        found = probe(client, known_id)
        calls = {
            "details": lambda: client.transaction_details(known_id),
            "csv_report": lambda: client.report_csv(START, START + timedelta(days=1)),
            "manual_stop": lambda: client.stop_transaction(running),
        }
        for feature, call in calls.items():
            if getattr(found, feature):
                call()
            else:
                with pytest.raises(FeatureMissing):
                    call()
        (now,) = client.transactions(ids=[running]).rows
        if found.details:
            with pytest.raises(NotFound):
                client.transaction_details(999_999)
    assert (now.stop_actor == "manual") is found.manual_stop


def test_the_other_kind_of_credentials_and_wrong_ones_are_told_apart(steve):
    basic = override(str(steve.release)).auth == "basic"
    with SteveClient(settings(steve, username=None)) as client:
        if basic:
            with pytest.raises(WrongCredentialKind):
                client.transactions()
        else:
            assert client.transactions().rows == []
    with (
        SteveClient(settings(steve, key="something-else")) as client,
        pytest.raises(Unauthorised if basic else WrongCredentialKind),
    ):
        client.transactions()


@pytest.mark.parametrize(
    ("release", "kind", "setting"),
    [("3.7", ApiDisabled, "STEVE_API_KEY"), ("3.9", Unauthorised, "STEVE_API_USERNAME")],
)
def test_an_api_that_was_never_switched_on_says_what_to_set(release: str, kind: type, setting: str):
    with (
        SteveSimulator(release, api_enabled=False) as steve,
        SteveClient(settings(steve)) as client,
        pytest.raises(kind, match=setting),
    ):
        client.transactions()


def test_an_empty_context_path_is_found(steve):
    with (
        SteveSimulator(str(steve.release), context_path="") as server,
        SteveClient(settings(server)) as client,
    ):
        assert client.locate() == f"{server.url}/api/v1"


@pytest.mark.parametrize(
    "release", ["3.6", "3.7.1", "3.8.0", "3.9", "3.10.0", "3.11", "3.12.0", "3.13", "3.99"]
)
def test_capabilities_survive_being_stored(release: str):
    known = override(release)
    assert Capabilities.from_dict(json.loads(json.dumps(known.to_dict()))) == known


def test_stored_capabilities_that_no_longer_fit_are_refused():
    with pytest.raises(ValueError, match="id_lists"):
        Capabilities.from_dict(override("3.9").to_dict() | {"id_lists": "perhaps"})


@pytest.mark.parametrize("release", ["", "3", "3.5", "3.5.1", "2.9", "4.0", "latest", "3.9.0.1"])
def test_a_release_without_an_api_or_a_made_up_one_is_refused(release: str):
    with pytest.raises(InvalidSettings, match="STEVE_RELEASE"):
        override(release)


def test_without_a_user_name_a_release_with_basic_is_taken_for_an_open_one():
    assert override("3.14.1", has_username=False).auth == "none"
    assert override("3.7.1", has_username=False).auth == "api_key"
