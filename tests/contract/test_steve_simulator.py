"""What the simulated StEvE does beyond the recordings: the version matrix, nasty data, size, commands.

Sources: the facts gathered from StEvE's own code and from servers of 3.7.1, 3.9.0, 3.12.0 and 3.14.1.
"""

import argparse
import gzip
import http.client
import itertools
import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
import urllib.request
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ocpp_billing.simulators.server import Fault
from ocpp_billing.simulators.steve import CallError, CostModel, Sample, SteveSimulator, StoreError
from ocpp_billing.simulators.steve_command import configure
from ocpp_billing.simulators.steve_release import MINORS, Release
from tests.contract.steve_wire import call, credentials, get, send, transaction

NOW = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
SECOND, MINUTE, HOUR, DAY = (timedelta(**{unit: 1}) for unit in ("seconds", "minutes", "hours", "days"))
BOX = "CP-1"
BEFORE_3_8 = ("3.6", "3.7")
FROM_3_12 = ("3.12", "3.13", "3.14")
CONTRACT = Path(__file__).parents[2].parent / "shared" / "contracts" / "steve-api-docs-3.15.json"

every_release = pytest.mark.parametrize("release", MINORS)


def at(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%S.000Z")


@pytest.fixture
def release():
    return "3.14"


@pytest.fixture
def steve(release):
    with SteveSimulator(release) as simulator:
        simulator.set_clock(NOW, frozen=True)
        for id_tag in ("TAG-A", "TAG-B"):
            simulator.add_tag(id_tag)
        yield simulator


def tick(steve, seconds=2):
    """The next message arrives later than the one before."""
    steve.set_clock(steve.now() + timedelta(seconds=seconds), frozen=True)


def charge(
    steve, *, start=NOW - HOUR, stop=NOW - MINUTE, start_wh=0, stop_wh=1000, tag="TAG-A", box=BOX, connector=1
):
    """A session from plugging in to unplugging; None as ``stop`` leaves it open."""
    transaction_id = steve.start_transaction(box, connector, tag, start, start_wh)
    if stop is not None:
        steve.stop_transaction(transaction_id, box, stop, stop_wh)
    return transaction_id


# -- versions ----------------------------------------------------------------------------------


def test_a_minor_version_means_its_last_patch():
    assert [str(Release.parse(minor)) for minor in ("3.6", "3.7", "3.10", "3.14")] == [
        "3.6.0",
        "3.7.1",
        "3.10.0",
        "3.14.1",
    ]
    assert str(Release.parse("3.14.0")) == "3.14.0"


@pytest.mark.parametrize("version", ["3.5", "3.15", "4", "3.9.1", ""])
def test_a_release_without_api_or_unknown_is_refused(version):
    with pytest.raises(ValueError, match="is not simulated; choose one of 3"):
        SteveSimulator(version)


@every_release
def test_each_release_takes_its_own_kind_of_credentials_only(steve, release):
    path = "/api/v1/transactions"
    basic = {"Authorization": "Basic YWRtaW46c3RldmUtc2VjcmV0"}
    key = {"STEVE-API-KEY": "steve-secret"}
    answers = {
        name: call(steve, "GET", path, headers=h)
        for name, h in (("basic", basic), ("key", key), ("none", {}))
    }
    both = call(steve, "GET", path, headers={**basic, **key})
    statuses = {name: answer.status for name, answer in answers.items()}
    assert both.status == 200
    if release in BEFORE_3_8:
        assert statuses == {"basic": 401, "key": 200, "none": 401}
        assert "www-authenticate" not in answers["none"].headers
    else:
        assert statuses == {"basic": 200, "key": 302, "none": 302}
        base = "" if release in FROM_3_12 else steve.url
        assert answers["none"].headers["location"] == f"{base}/steve/manager/signin"
        assert answers["none"].text == ""
        assert call(steve, "GET", "/manager/signin").headers["content-type"].startswith("text/html")


def test_the_api_key_header_can_have_another_name():
    with SteveSimulator("3.7", api_key_header="X-Charging", password="s") as steve:
        assert call(steve, "GET", "/api/v1/transactions", headers={"X-CHARGING": "s"}).status == 200
        assert call(steve, "GET", "/api/v1/transactions", headers={"STEVE-API-KEY": "s"}).status == 401


@pytest.mark.parametrize("release", ["3.7", "3.14"])
def test_an_open_api_answers_anybody(release):
    with SteveSimulator(release, is_open=True, api_enabled=False) as steve:
        for headers in ({}, {"STEVE-API-KEY": "wrong"}):
            assert call(steve, "GET", "/api/v1/transactions", headers=headers).json == []


def test_a_disabled_api_is_an_html_500_up_to_3_7_and_a_401_after():
    with SteveSimulator("3.7", api_enabled=False) as old, SteveSimulator("3.8", api_enabled=False) as new:
        answer = get(old, "/transactions")
        assert (answer.status, answer.headers["content-type"].partition(";")[0]) == (500, "text/html")
        assert "Web APIs are not exposed" in answer.text
        refused = get(new, "/transactions")
        assert refused.status == 401
        assert refused.json["message"].endswith("has API access disabled.")


def test_a_changed_password_is_known_ten_minutes_later_from_3_8_on(steve):
    old, new = credentials(steve), credentials(steve, password="new")
    path = "/api/v1/transactions?transactionPk=1"
    assert call(steve, "GET", path, headers=old).status == 200
    steve.api.password = "new"
    tick(steve, 9 * 60)
    assert [call(steve, "GET", path, headers=each).status for each in (old, new)] == [200, 401]
    tick(steve, 60)
    assert [call(steve, "GET", path, headers=each).status for each in (old, new)] == [401, 200]


@pytest.mark.parametrize(
    ("token", "message"),
    [("YWRtaW46", "Required parameters missing"), ("!!", "Failed to decode basic authentication token")],
)
def test_broken_basic_credentials_are_a_401(steve, token, message):
    answer = call(steve, "GET", "/api/v1/transactions", headers={"Authorization": f"Basic {token}"})
    assert (answer.status, answer.json["message"]) == (401, message)


def test_the_context_path_may_be_empty_or_another():
    with SteveSimulator(context_path="") as bare, SteveSimulator(context_path="/charging/steve") as deep:
        assert get(bare, "/transactions").status == 200
        assert call(bare, "GET", "/api/v1/transactions").headers["location"] == "/manager/signin"
        assert deep.base_url.endswith("/charging/steve")
        assert get(deep, "/transactions").status == 200
    with SteveSimulator() as steve:
        connection = http.client.HTTPConnection("127.0.0.1", steve.port)
        connection.request("GET", "/api/v1/transactions", headers=credentials(steve))
        assert connection.getresponse().status == 404
        connection.close()


def test_a_context_path_without_slash_is_refused():
    with pytest.raises(ValueError, match="must be empty or begin, not end, with a slash"):
        SteveSimulator(context_path="steve")


def test_a_request_line_beyond_eight_kilobytes_is_refused(steve):
    ids = ",".join(map(str, range(1_000_000, 1_001_200)))
    assert get(steve, f"/transactions?transactionPk={ids}").status == 414
    assert get(steve, "/transactions", Cookie="c" * 8_200).status == 431
    ids = ",".join(map(str, range(1_000_000, 1_000_500)))
    assert get(steve, f"/transactions?transactionPk={ids}").status == 200


# -- routes ------------------------------------------------------------------------------------


@every_release
def test_details_stop_and_report_exist_from_3_12(steve, release):
    known = charge(steve)
    statuses = [
        get(steve, f"/transactions/{known}").status,
        get(
            steve,
            "/transactions/reports/csv?from=2026-01-01T00:00:00Z&to=2027-01-01T00:00:00Z",
            Accept="text/csv",
        ).status,
        send(steve, "PATCH", f"/transactions/{known}/stop").status,
    ]
    missing = 404 if release in BEFORE_3_8 else 403
    assert statuses == ([200] * 3 if release in FROM_3_12 else [missing] * 3)


@every_release
def test_operations_exist_from_3_11(steve, release):
    running = charge(steve, stop=None)
    body = {"chargeBoxIdList": [BOX], "transactionId": running}
    refused = send(steve, "POST", "/operations/RemoteStopTransaction", body)
    if release in BEFORE_3_8:
        assert refused.status == 404
    elif release in {"3.8", "3.9", "3.10"}:
        assert (refused.status, refused.text) == (403, "")
    else:
        assert refused.status == 400
        assert refused.json["message"].startswith("No stations are eligible")
        steve.online.add(BOX)
        taken = send(steve, "POST", "/operations/RemoteStopTransaction", body).json
        assert taken["successResponses"] == [{"chargeBoxId": BOX, "response": "Accepted"}]
        assert steve.remote_operations[0].parameters == body
        other = {"chargeBoxIdList": ["CP-OTHER"], "transactionId": running}
        not_here = send(steve, "POST", "/operations/RemoteStopTransaction", other)
        assert (not_here.status, not_here.json["message"]) == (
            400,
            "This transaction is not active at this station.",
        )
        assert send(steve, "POST", "/operations/NoSuchOperation", body).status == 403


def test_a_blocked_tag_cannot_start_remotely(steve):
    steve.online.add(BOX)
    steve.add_tag("TAG-BLOCKED", max_active=0)
    body = {"chargeBoxIdList": [BOX], "idTag": "TAG-BLOCKED"}
    assert send(steve, "POST", "/operations/RemoteStartTransaction", body).status == 400
    assert send(steve, "POST", "/operations/RemoteStartTransaction", {**body, "idTag": "TAG-A"}).status == 200
    assert send(steve, "POST", "/operations/RemoteStartTransaction", {"idTag": "TAG-A"}).status == 400


@pytest.mark.parametrize(
    ("release", "body"), [("3.8", ""), ("3.11", ""), ("3.12", "Forbidden"), ("3.13", "Forbidden")]
)
def test_a_missing_route_is_forbidden_and_explained_from_3_12(steve, body):
    answer = get(steve, "/nothing-here")
    assert answer.status == 403
    assert (answer.json["message"] if answer.text else "") == body
    assert get(steve, "/nothing-here", Accept="text/html").text == ""


@pytest.mark.parametrize(("release", "status"), [("3.7", 415), ("3.14", 403)])
def test_a_tag_must_be_sent_as_json(steve, status):
    headers = {**credentials(steve), "Content-Type": "text/plain"}
    assert call(steve, "POST", "/api/v1/ocppTags", body='{"idTag":"X"}', headers=headers).status == status


@every_release
def test_a_path_that_is_no_number_is_a_400_in_words_of_its_own(steve, release):
    answer = get(steve, "/ocppTags/abc")
    assert answer.status == 400
    nested = "nested exception is java.lang.NumberFormatException" in answer.json["message"]
    named = answer.json["message"].startswith("Method parameter 'ocppTagPk': ")
    assert (nested, named) == ((True, False) if release in BEFORE_3_8 else (False, True))


# -- the query ---------------------------------------------------------------------------------


@every_release
def test_fields_of_a_transaction(steve, release):
    steve.set_user("TAG-A", 7)
    row = transaction(steve, charge(steve, start=NOW - HOUR, stop=NOW, start_wh=5, stop_wh=25))
    with_user = release not in {"3.6", "3.7", "3.8"}
    expected = {
        "id": 1, "connectorId": 1, "chargeBoxPk": 1, "ocppTagPk": 1, "chargeBoxId": BOX, "ocppIdTag": "TAG-A",
        **({"userId": 7} if with_user else {}),
        "startValue": "5", "startTimestamp": at(NOW - HOUR), "stopValue": "25", "stopReason": "Local",
        "stopTimestamp": at(NOW), "stopEventActor": "station",
    }  # fmt: skip
    names = sorted(expected) if release in FROM_3_12 else list(expected)
    assert list(row.items()) == [(name, expected[name]) for name in names]


@every_release
def test_stopped_is_a_type_from_3_8(steve, release):
    stopped, running = charge(steve), charge(steve, stop=None, start=NOW - MINUTE)
    assert get(steve, "/transactions?type=ACTIVE").ids == [running]
    answer = get(steve, "/transactions?type=STOPPED")
    if release in BEFORE_3_8:
        assert (answer.status, answer.json["message"]) == (400, "Error understanding the request")
    else:
        assert answer.ids == [stopped]


@every_release
def test_from_to_looks_at_the_start_but_on_3_8_and_3_9_at_the_stop_or_at_nothing(steve, release):
    long_ago = charge(steve, start=NOW - 9 * DAY, stop=NOW - 8 * DAY)
    crossing = charge(steve, start=NOW - 2 * DAY, stop=NOW)
    inside = charge(steve, start=NOW - HOUR, stop=NOW - MINUTE)
    running = charge(steve, start=NOW - MINUTE, stop=None)
    window = f"periodType=FROM_TO&from={at(NOW - DAY)[:19]}&to={at(NOW)[:19]}"
    answers = {
        kind: get(steve, f"/transactions?type={kind}&{window}") for kind in ("ALL", "ACTIVE", "STOPPED")
    }
    assert answers["ACTIVE"].ids == [running]
    if release in {"3.8", "3.9"}:
        assert answers["ALL"].ids == [running, inside, crossing, long_ago]
        assert answers["STOPPED"].ids == [inside, crossing]
        one = get(steve, f"/transactions?transactionPk={long_ago}&{window}")
        assert one.ids == [long_ago]
    else:
        assert answers["ALL"].ids == [running, inside]
        assert (
            answers["STOPPED"].status == 400 if release in BEFORE_3_8 else answers["STOPPED"].ids == [inside]
        )
        assert get(steve, f"/transactions?transactionPk={long_ago}&{window}").ids == []


@pytest.mark.parametrize("release", ["3.7", "3.9", "3.14"])
def test_from_to_includes_both_ends(steve, release):
    first = charge(steve, start=NOW - 2 * HOUR, stop=NOW - 2 * HOUR)
    last = charge(steve, start=NOW - HOUR, stop=NOW - HOUR)
    kind = "type=STOPPED&" if release == "3.9" else ""

    def found(begin, end):
        return get(
            steve, f"/transactions?{kind}periodType=FROM_TO&from={at(begin)[:19]}&to={at(end)[:19]}"
        ).ids

    assert found(NOW - 2 * HOUR, NOW - HOUR) == [last, first]
    assert found(NOW - 2 * HOUR + SECOND, NOW - HOUR) == [last]
    assert found(NOW - 2 * HOUR, NOW - HOUR - SECOND) == [first]


@every_release
def test_today_and_last_days_are_calendar_days_of_the_start_in_utc(steve):
    midnight = NOW.replace(hour=0)
    starts = [midnight - 10 * DAY - SECOND, midnight - 10 * DAY, midnight - SECOND, midnight, midnight + DAY]
    ids = [charge(steve, start=start, stop=None, connector=n) for n, start in enumerate(starts, 1)]
    assert get(steve, "/transactions?periodType=TODAY").ids == [ids[3]]
    assert get(steve, "/transactions?periodType=LAST_10").ids == [ids[3], ids[2], ids[1]]
    assert get(steve, "/transactions?periodType=LAST_90").ids == [ids[3], ids[2], ids[1], ids[0]]


@every_release
@pytest.mark.parametrize(
    ("text", "local", "zoned"),
    [
        ("2026-05-04T11:30:00", True, True),
        ("2026-05-04T11:30", True, True),
        ("2026-05-04", True, True),
        ("2026-05-04T11:30:00.123", True, True),
        ("2026-05-04T11:30:00Z", False, True),
        ("2026-05-04T13:30:00%2B02:00", False, True),
        ("2026-05-04T13:30:00+02:00", False, False),
        ("2026-05-04%2011:30:00", False, False),
        ("2026-13-04", False, False),
        ("yesterday", False, False),
    ],
)
def test_dates_must_not_name_a_zone_up_to_3_7_and_may_after(steve, release, text, local, zoned):
    taken = local if release in BEFORE_3_8 else zoned
    answer = get(steve, f"/transactions?type=ACTIVE&periodType=FROM_TO&from={text}&to=2026-06-01")
    assert answer.status == (200 if taken else 400)


def test_an_offset_moves_the_window(steve):
    charge(steve, start=NOW, stop=None)
    shifted = "periodType=FROM_TO&from=2026-05-04T14:00:00%2B02:00&to=2026-05-04T14:00:01%2B02:00"
    assert len(get(steve, f"/transactions?{shifted}").ids) == 1


@pytest.mark.parametrize(
    "query",
    [
        "from=2026-05-04&to=2026-05-04",
        "from=2026-05-05&to=2026-05-04",
        "periodType=FROM_TO&to=2026-05-04",
        "from=x",
        "periodType=today",
    ],
)
@every_release
def test_times_are_checked_whether_they_are_used_or_not(steve, query):
    assert get(steve, f"/transactions?{query}").status == 400


@every_release
def test_several_ids_are_a_list_from_3_11_and_a_trap_before(steve, release):
    ids = [charge(steve, start=NOW - n * HOUR) for n in range(3)]
    comma = get(steve, f"/transactions?transactionPk={ids[0]},{ids[2]},99")
    repeated = get(steve, f"/transactions?transactionPk={ids[0]}&transactionPk={ids[2]}")
    boxes = get(steve, f"/transactions?chargeBoxId={BOX},CP-2")
    if release in {"3.11", *FROM_3_12}:
        assert comma.ids == repeated.ids == [ids[2], ids[0]]
        assert boxes.ids == ids[::-1]
    else:
        assert comma.status == 400
        assert repeated.ids == [ids[0]]
        assert boxes.ids == []


@pytest.mark.parametrize("release", ["3.10", "3.11", "3.14"])
@pytest.mark.parametrize(
    "query", ["transactionPk=1,,2", "transactionPk=1,", "transactionPk=1&transactionPk="]
)
def test_an_id_that_is_missing_in_a_list_is_refused(steve, release, query):
    charge(steve)
    refused = (400, "Error understanding the request")
    answer = get(steve, f"/transactions?{query}")
    if release == "3.10" and "&" in query:  # the first of several counts
        assert answer.ids == [1]
    else:
        assert (answer.status, answer.json["message"]) == refused
    assert get(steve, "/transactions?transactionPk=").ids == [1]


@every_release
def test_filters_that_a_release_does_not_know_are_ignored(steve, release):
    steve.set_user("TAG-B", 3)
    first = charge(steve, connector=1)
    second = charge(steve, connector=2, tag="TAG-B")
    both = [second, first]
    by_connector = get(steve, "/transactions?connectorId=1")
    assert by_connector.ids == (both if release in {"3.6", "3.7", "3.8"} else [first])
    by_user = get(steve, "/transactions?userId=3")
    assert by_user.ids == (both if release in BEFORE_3_8 else [second])
    assert get(steve, "/transactions?nonsense=1&page=2").ids == both
    assert get(steve, "/transactions?connectorId=x").status == (
        200 if release in {"3.6", "3.7", "3.8"} else 400
    )


@every_release
def test_the_tag_filter_knows_no_case_accent_or_trailing_blank(steve):
    steve.add_tag("Café")
    mine = charge(steve, tag="CAFE ")
    assert get(steve, "/transactions?ocppIdTag=cafe%CC%81").ids == [mine]
    assert transaction(steve, mine)["ocppIdTag"] == "CAFE "


def test_conditions_are_anded_and_an_empty_value_is_none(steve):
    wanted = charge(steve)
    charge(steve, tag="TAG-B", start=NOW - 2 * HOUR)
    assert get(steve, f"/transactions?transactionPk={wanted}&ocppIdTag=TAG-B").ids == []
    assert len(get(steve, "/transactions?transactionPk=&type=&from=").ids) == 2


@pytest.mark.parametrize("value", ["abc", "1.5", "2147483648", "1_0", "0x1F"])
def test_an_id_must_be_a_java_int(steve, value):
    assert get(steve, f"/transactions?transactionPk={value}").status == 400


# -- starts ------------------------------------------------------------------------------------


@every_release
def test_the_same_start_again_gives_the_same_id_even_after_the_stop(steve):
    first = steve.start_transaction(BOX, 1, "TAG-A", NOW, 10)
    assert steve.start_transaction(BOX, 1, "TAG-A", NOW, 10) == first
    steve.stop_transaction(first, BOX, NOW + SECOND, 20)
    assert steve.start_transaction(BOX, 1, "TAG-A", NOW, 10) == first
    assert steve.start_transaction(BOX, 1, "TAG-A", NOW, 11) == first + 1
    assert steve.start_transaction(BOX, 1, "TAG-A", NOW + SECOND, 10) == first + 2


@every_release
def test_an_unknown_tag_is_registered_as_blocked_and_its_session_kept(steve):
    reply = steve.begin(BOX, 1, "new!tag", NOW - MINUTE, 0)
    assert reply.id_tag_status == "Invalid"
    [tag] = get(steve, "/ocppTags?blocked=TRUE").json
    assert (tag["idTag"], tag["maxActiveTransactionCount"], tag["activeTransactionCount"]) == (
        "new!tag",
        0,
        1,
    )
    assert transaction(steve, reply.transaction_id)["ocppTagPk"] == tag["ocppTagPk"]
    assert steve.begin(BOX, 2, "new!tag", NOW, 0).id_tag_status == "Blocked"


def test_a_charge_point_is_told_why_a_tag_may_not_charge(steve):
    steve.add_tag("TAG-ONE", max_active=1)
    assert steve.begin(BOX, 1, "TAG-ONE", NOW, 0).id_tag_status == "Accepted"
    assert steve.begin(BOX, 2, "TAG-ONE", NOW, 0).id_tag_status == "ConcurrentTx"
    body = {"idTag": "TAG-SHORT", "expiryDate": at(NOW + HOUR)}
    assert send(steve, "POST", "/ocppTags", body).status == 201
    tick(steve, 3600)
    assert steve.begin(BOX, 3, "TAG-SHORT", NOW, 0).id_tag_status == "Expired"
    assert len(get(steve, "/transactions").ids) == 3


@every_release
def test_the_first_second_of_1970_cannot_be_stored_and_the_next_can(steve):
    with pytest.raises(CallError, match="InternalError"):
        steve.start_transaction(BOX, 1, "TAG-A", "1970-01-01T00:00:00Z", 0)
    assert get(steve, "/transactions").ids == []
    stored = steve.start_transaction(BOX, 1, "TAG-A", "1970-01-01T00:00:01Z", 0)
    assert get(steve, "/transactions?type=ACTIVE").ids == [stored]


@every_release
def test_a_start_beyond_2038_has_a_null_time_up_to_3_7_and_is_refused_after(steve, release):
    if release in BEFORE_3_8:
        row = transaction(steve, steve.start_transaction(BOX, 1, "TAG-A", "2038-01-19T03:14:08Z", 0))
        assert (row["startTimestamp"], row["stopTimestamp"]) == (None, None)
        assert get(steve, "/transactions?periodType=FROM_TO&from=2026-01-01&to=2030-01-01").ids == []
    else:
        with pytest.raises(CallError):
            steve.start_transaction(BOX, 1, "TAG-A", "2038-01-19T03:14:08Z", 0)
    assert steve.start_transaction(BOX, 2, "TAG-A", "2038-01-19T03:14:07Z", 0)


@pytest.mark.parametrize(("release", "found"), [("3.7", []), ("3.9", [1]), ("3.14", [1])])
def test_a_window_from_1969_finds_nothing_on_3_7(steve, release, found):
    charge(steve, start=datetime(1970, 1, 2, tzinfo=UTC), stop=None)
    assert (
        get(steve, "/transactions?type=ACTIVE&periodType=FROM_TO&from=1969-12-31&to=1971-01-01").ids == found
    )
    assert get(
        steve, "/transactions?type=ACTIVE&periodType=FROM_TO&from=1970-01-01T00:00:01&to=1971-01-01"
    ).ids == [1]


# -- stops -------------------------------------------------------------------------------------


def stop_of(steve, transaction_id):
    row = transaction(steve, transaction_id)
    return row["stopValue"], row["stopEventActor"]


BAD_STOPS = {
    "register below the start": {"meter_wh": 99, "at": NOW - MINUTE},
    "stop before start": {"meter_wh": 500, "at": NOW - 2 * HOUR},
    "stop in the future": {"meter_wh": 500, "at": NOW + 6 * MINUTE},
}


@every_release
@pytest.mark.parametrize("why", BAD_STOPS)
def test_a_stop_without_sense_leaves_the_session_open_for_ever_from_3_12(steve, release, why):
    open_ = steve.start_transaction(BOX, 1, "TAG-A", NOW - HOUR, 100)
    answer = steve.stop_transaction(open_, BOX, BAD_STOPS[why]["at"], BAD_STOPS[why]["meter_wh"])
    if release in FROM_3_12:
        assert answer == why
        assert stop_of(steve, open_) == (None, None)
        tick(steve)
        assert steve.stop_transaction(open_, BOX, NOW, 700) is None
    else:
        assert answer is None
        assert stop_of(steve, open_) == (str(BAD_STOPS[why]["meter_wh"]), "station")


def test_five_minutes_of_future_and_equal_times_and_registers_are_no_error(steve):
    open_ = steve.start_transaction(BOX, 1, "TAG-A", NOW, 100)
    assert steve.stop_transaction(open_, BOX, NOW, 100) is None
    ahead = steve.start_transaction(BOX, 1, "TAG-A", NOW - HOUR, 100)
    assert steve.stop_transaction(ahead, BOX, NOW + 5 * MINUTE, 100) is None


@every_release
def test_a_second_stop_wins_up_to_3_11_unless_it_comes_within_the_same_second(steve, release):
    mine = charge(steve, stop_wh=1000)
    steve.stop_transaction(mine, BOX, NOW, 1100)
    assert stop_of(steve, mine) == ("1000", "station")
    tick(steve, 1)
    steve.stop_transaction(mine, BOX, NOW, 1200)
    assert stop_of(steve, mine) == (("1000" if release in FROM_3_12 else "1200"), "station")


@every_release
def test_a_stop_by_another_charge_box_overwrites_up_to_3_11(steve, release):
    mine = charge(steve, stop_wh=1000)
    tick(steve)
    why = steve.stop_transaction(mine, "CP-STRANGER", NOW, 7700)
    assert (why is None) == (release not in FROM_3_12)
    assert stop_of(steve, mine)[0] == ("1000" if release in FROM_3_12 else "7700")
    assert steve.truth() == {mine: 1000}


@every_release
def test_stops_of_unknown_transactions_and_unstorable_times_are_set_aside(steve):
    mine = charge(steve, stop=None)
    for unknown in (0, -1, 99):
        assert steve.stop_transaction(unknown, BOX, NOW, 5) == "unknown transaction"
    assert steve.stop_transaction(mine, BOX, "2038-01-19T03:14:08Z", 5) is not None
    assert get(steve, "/transactions?type=ACTIVE").ids == [mine]
    assert len(steve.store.failed_stops) == 4


@pytest.mark.parametrize(
    ("release", "spelling", "stranger"),
    [
        ("3.11", True, True),
        ("3.12", True, True),
        ("3.13", True, True),
        ("3.14.0", True, True),
        ("3.14.1", False, False),
    ],
)
def test_the_tag_that_stops_counts_from_3_14_1_on_letter_by_letter(steve, spelling, stranger):
    steve.add_tag("FLEET")
    steve.add_tag("VAN-1", parent="FLEET")
    steve.add_tag("VAN-2", parent="FLEET")

    def stops_with(started, stopped):
        one = steve.start_transaction(BOX, 1, started, NOW - HOUR, len(steve.store.ids))
        return steve.stop_transaction(one, BOX, NOW, 10_000, id_tag=stopped) is None

    assert stops_with("TAG-A", "tag-a") == spelling
    assert stops_with("TAG-A", "TAG-B") == stranger
    assert stops_with("TAG-A", "NEVER-SEEN") == stranger
    assert stops_with("VAN-1", "FLEET")
    assert stops_with("VAN-1", "VAN-2")
    assert stops_with("TAG-A", None)


@pytest.mark.parametrize(
    ("release", "stored"), [("3.11", True), ("3.12", False), ("3.13", False), ("3.14", True)]
)
@pytest.mark.parametrize("sampled", [NOW - HOUR - 6 * MINUTE, NOW - MINUTE + 6 * MINUTE, NOW + 10 * MINUTE])
def test_meter_values_outside_the_session_spoil_a_stop_on_3_12_and_3_13(steve, stored, sampled):
    mine = charge(steve, stop=None)
    why = steve.stop_transaction(mine, BOX, NOW - MINUTE, 1000, transaction_data=[Sample(sampled, "900")])
    assert (why is None) == stored


@every_release
def test_the_stations_stop_overrides_an_operators(steve):
    mine = steve.start_transaction(BOX, 1, "TAG-A", NOW - HOUR, 100)
    steve.manual_stop(mine)
    assert stop_of(steve, mine) == ("100", "manual")
    tick(steve)
    steve.stop_transaction(mine, BOX, NOW, 900)
    assert stop_of(steve, mine) == ("900", "station")
    steve.manual_stop(mine)
    assert stop_of(steve, mine) == ("900", "station")


# -- an operator's stop and the details --------------------------------------------------------


@every_release
def test_a_manual_stop_takes_the_next_start_where_there_are_no_meter_values(steve):
    lonely = steve.start_transaction(BOX, 2, "TAG-A", NOW - 5 * DAY, 100)
    stuck = steve.start_transaction(BOX, 1, "TAG-A", NOW - 5 * DAY, 100)
    charge(steve, start=NOW - 4 * DAY, stop=NOW - 3 * DAY, start_wh=4100, stop_wh=5000)
    reset = steve.start_transaction(BOX, 1, "TAG-A", NOW - 2 * DAY, 5000)
    charge(steve, start=NOW - DAY, stop=NOW, start_wh=0, stop_wh=10)
    for transaction_id in (lonely, stuck, reset):
        steve.manual_stop(transaction_id)
    shown = {
        t: (r["stopValue"], r["stopTimestamp"])
        for t in (lonely, stuck, reset)
        for r in [transaction(steve, t)]
    }
    assert shown == {
        lonely: ("100", at(NOW - 5 * DAY)),
        stuck: ("4100", at(NOW - 4 * DAY)),
        reset: ("5000", at(NOW - DAY)),
    }


@pytest.mark.parametrize("release", ["3.7"])
def test_a_manual_stop_of_a_session_without_start_needs_a_meter_value_for_its_time(steve):
    late = "2038-01-19T03:14:08Z"
    alone, before_another, measured = (
        steve.start_transaction(BOX, connector, "TAG-A", late, 100) for connector in (1, 2, 3)
    )
    charge(steve, connector=2, start_wh=900)
    steve.meter_values(BOX, 3, [sample(5, "700")], measured)
    for transaction_id in (alone, before_another, measured):
        steve.manual_stop(transaction_id)
    assert get(steve, "/transactions?type=ACTIVE").ids == [before_another, alone]
    stopped = transaction(steve, measured)
    assert (stopped["startTimestamp"], stopped["stopTimestamp"]) == (None, at(NOW - 5 * MINUTE))
    assert stop_of(steve, measured) == ("700", "manual")
    assert [failed["why"] for failed in steve.central.state()["failed_stops"]] == ["a stop needs a time"] * 2
    tick(steve)
    assert steve.stop_transaction(alone, BOX, NOW, 800) is None


def sample(minutes_ago, value, **more):
    return Sample(NOW - minutes_ago * MINUTE, value, **more)


@pytest.mark.parametrize("release", ["3.13", "3.14"])
def test_a_manual_stop_rounds_the_last_energy_value_up_to_whole_wh(steve):
    mine = charge(steve, stop=None, start_wh=100)
    steve.meter_values(
        BOX,
        1,
        [
            sample(9, "0.5", unit="kWh"),
            sample(5, "0.7001", unit="kWh"),
            sample(4, "NaN"),
            sample(3, "9", unit="W", measurand="Power.Active.Import"),
        ],
        mine,
    )
    assert send(steve, "PATCH", f"/transactions/{mine}/stop").status == 200
    row = transaction(steve, mine)
    assert (row["stopValue"], row["stopTimestamp"], row["stopReason"]) == ("701", at(NOW - 5 * MINUTE), None)


@pytest.mark.parametrize(("release", "stop_wh"), [("3.12", "30"), ("3.13", "30"), ("3.14", "1500")])
def test_a_manual_stop_follows_a_falling_register_up_to_3_13_only(steve, stop_wh):
    mine = charge(steve, stop=None, start_wh=1000)
    steve.meter_values(BOX, 1, [sample(9, "1200"), sample(8, "1500"), sample(7, "30")], mine)
    steve.manual_stop(mine)
    assert stop_of(steve, mine) == (stop_wh, "manual")


def values(steve, transaction_id, query=""):
    return [value["value"] for value in get(steve, f"/transactions/{transaction_id}{query}").json["values"]]


@pytest.mark.parametrize(("release", "leaks"), [("3.12", True), ("3.13", False), ("3.14", False)])
def test_other_sessions_meter_values_leak_into_the_details_on_3_12(steve, leaks):
    stuck = charge(steve, start=NOW - HOUR, stop=None)
    other = charge(steve, start=NOW - 30 * MINUTE, stop=None)
    steve.meter_values(BOX, 1, [sample(50, "10")], stuck)
    steve.meter_values(BOX, 1, [sample(45, "99"), sample(20, "500")], other)
    steve.meter_values(BOX, 1, [sample(40, "20"), sample(29, "800")], 0)
    steve.meter_values(BOX, 2, [sample(35, "77")], None)
    assert values(steve, stuck) == (["10", "99", "20"] if leaks else ["10", "20"])


@pytest.mark.parametrize(("release", "at_next_start"), [("3.12", True), ("3.13", False)])
def test_the_window_of_an_endless_session_ends_with_or_before_the_next_start(steve, at_next_start):
    stuck = charge(steve, start=NOW - HOUR, stop=None)
    charge(steve, start=NOW - 30 * MINUTE, stop=None)
    steve.meter_values(BOX, 1, [sample(30, "40")])
    assert values(steve, stuck) == (["40"] if at_next_start else [])


@pytest.mark.parametrize(("release", "switchable"), [("3.12", False), ("3.13", True), ("3.14", True)])
def test_everything_but_energy_can_be_seen_from_3_13(steve, switchable):
    mine = charge(steve, stop=None)
    samples = [
        sample(9, "100", measurand=None, unit=None),
        sample(8, "signed", format="SignedData"),
        sample(7, "55", unit="Percent", measurand="SoC"),
        sample(6, "300", phase="L1"),
        sample(5, "7", measurand="Energy.Active.Export.Register"),
        sample(5, "n/a"),
    ]
    steve.meter_values(BOX, 1, samples, mine)
    assert values(steve, mine) == ["100", "300"]
    everything = ["100", "signed", "55", "300", "7", "n/a"]
    assert values(steve, mine, "?energyValuesOnly=false") == (everything if switchable else ["100", "300"])
    assert get(steve, f"/transactions/{mine}?energyValuesOnly=maybe").status == (400 if switchable else 200)


@pytest.mark.parametrize(("release", "kept"), [("3.12", True), ("3.13", True), ("3.14", False)])
def test_meter_values_after_the_stations_stop_are_dropped_from_3_14(steve, kept):
    mine = charge(steve)
    assert steve.meter_values(BOX, 1, [sample(2, "900")], mine) == kept
    assert steve.meter_values(BOX, 1, [sample(2, "900")], 4711) == kept
    assert values(steve, mine) == (["900"] if kept else [])


# -- the report --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("release", "column", "arrival"), [("3.12", "connector_pk", ".000Z"), ("3.13", "evse_pk", ".250Z")]
)
def test_the_report_is_by_stop_and_ordered_by_start(steve, column, arrival):
    steve.set_clock(NOW + timedelta(milliseconds=250), frozen=True)
    late = charge(steve, start=NOW - HOUR, stop=NOW - MINUTE)
    early = charge(steve, start=NOW - 2 * HOUR, stop=NOW - MINUTE, connector=2)
    charge(steve, start=NOW - 3 * HOUR, stop=NOW)
    steve.manual_stop(charge(steve, start=NOW - DAY, stop=None, connector=3))
    query = f"from={at(NOW - DAY)}&to={at(NOW)}"
    answer = get(steve, f"/transactions/reports/csv?{query}", Accept="text/csv")
    lines = answer.text.splitlines()
    assert lines[0].startswith(f"transaction_pk,{column},id_tag,start_event_timestamp")
    assert [int(line.split(",")[0]) for line in lines[1:]] == [4, early, late]
    assert lines[1].endswith(',0,""')
    assert lines[3].split(",")[3].endswith(arrival)
    assert answer.headers["content-disposition"] == 'attachment; filename="transaction_report.csv"'


@pytest.mark.parametrize(
    "query",
    [
        "",
        "from=2026-05-04&to=2026-05-05",
        "from=2026-05-04T00:00:00&to=2026-05-05T00:00:00",
        "from=2026-05-04T00:00:00Z&to=2026-05-04T00:00:00Z",
    ],
)
def test_whatever_is_wrong_with_the_report_is_a_bare_403(steve, query):
    answer = get(steve, f"/transactions/reports/csv?{query}", Accept="text/csv")
    assert (answer.status, answer.text) == (403, "")


# -- tags --------------------------------------------------------------------------------------


@every_release
def test_fields_of_a_tag(steve, release):
    steve.set_user("TAG-A", 4)
    tag = get(steve, "/ocppTags/1").json
    expected = {
        "ocppTagPk": 1, "idTag": "TAG-A", **({} if release in BEFORE_3_8 else {"userPk": 4}), "parentOcppTagPk": None,
        "parentIdTag": None, "inTransaction": False, "blocked": False, "expiryDate": None,
        "maxActiveTransactionCount": -1, "activeTransactionCount": 0, "note": None,
    }  # fmt: skip
    names = sorted(expected) if release in FROM_3_12 else list(expected)
    assert list(tag.items()) == [(name, expected[name]) for name in names]


@every_release
def test_what_a_tag_may_look_like(steve, release):
    def create(**form):
        return send(steve, "POST", "/ocppTags", form).status

    assert create(idTag="A.b:c_d-1") == 201
    assert create(idTag="with#hash") == (400 if release == "3.6" else 201)
    assert create(idTag="x" * 20) == 201
    assert create(idTag="x" * 21) == create(idTag="") == create(note="no tag") == 400
    assert create(idTag="tag-A") == 422
    assert create(idTag="OK", maxActiveTransactionCount="many") == 500


@every_release
def test_the_expiry_of_a_tag_is_local_up_to_3_7_and_must_be_in_the_future(steve, release):
    def put(expiry):
        return send(steve, "PUT", "/ocppTags/1", {"idTag": "TAG-A", "expiryDate": expiry})

    zoned = put(at(NOW + DAY))
    assert zoned.status == (500 if release in BEFORE_3_8 else 200)
    local = put(at(NOW + DAY)[:16])
    assert local.json["expiryDate"] == at(NOW + DAY)
    assert put(at(NOW)[:19]).status == 400
    tick(steve, 2 * 86_400)
    assert [tag["ocppTagPk"] for tag in get(steve, "/ocppTags?expired=TRUE").json] == [1]
    assert [tag["ocppTagPk"] for tag in get(steve, "/ocppTags?expired=FALSE").json] == [2]


@every_release
def test_a_put_replaces_everything_and_unblocks_what_it_does_not_mention(steve):
    steve.add_tag("CHILD", parent="TAG-A", max_active=0, note="keep me")
    assert send(steve, "PUT", "/ocppTags/3", {"idTag": "any-valid-name"}).status == 200
    tag = get(steve, "/ocppTags/3").json
    assert (
        tag["idTag"],
        tag["parentIdTag"],
        tag["blocked"],
        tag["maxActiveTransactionCount"],
        tag["note"],
    ) == ("CHILD", None, False, 1, None)
    assert send(steve, "PUT", "/ocppTags/3", {"idTag": "CHILD", "parentIdTag": "NOBODY"}).status == 500
    assert send(steve, "PUT", "/ocppTags/99", {"idTag": "CHILD"}).status == 404


@every_release
def test_deleting_a_tag_takes_its_transactions_along_but_not_the_truth(steve):
    steve.add_tag("CHILD", parent="TAG-B")
    gone, kept = charge(steve, tag="tag-a"), charge(steve, tag="TAG-B")
    steve.meter_values(BOX, 1, [sample(30, "500")], gone)
    assert send(steve, "DELETE", "/ocppTags/1").json["idTag"] == "TAG-A"
    assert get(steve, "/transactions").ids == [kept]
    assert get(steve, f"/transactions?transactionPk={gone}").ids == []
    assert send(steve, "DELETE", "/ocppTags/2").status == 500
    assert send(steve, "DELETE", "/ocppTags/1").status == 404
    assert {e.transaction_id: (e.delivered_wh, e.visible) for e in steve.ledger()} == {
        gone: (1000, False),
        kept: (1000, True),
    }
    assert steve.truth() == {kept: 1000}
    steve.add_tag("TAG-A")
    assert get(steve, "/transactions").ids == [kept]


def test_deleting_a_charge_box_takes_its_transactions_along(steve):
    charge(steve, box="CP-OLD")
    kept = charge(steve)
    steve.delete_charge_box("CP-OLD")
    assert get(steve, "/transactions").ids == [kept]
    assert steve.register_charge_box("CP-OLD") == 3


@pytest.mark.parametrize(("release", "found"), [("3.7", [1, 2]), ("3.8", [2])])
def test_tags_can_be_found_by_user_and_note_from_3_8(steve, found):
    steve.set_user("TAG-B", 9)
    send(steve, "PUT", "/ocppTags/2", {"idTag": "TAG-B", "note": "The Blue Van"})
    for query in ("userId=9", "note=blue", "userFilter=OnlyTagsWithUser"):
        assert [tag["ocppTagPk"] for tag in get(steve, f"/ocppTags?{query}").json] == found
    assert get(steve, "/ocppTags?blocked=true").status == 400


def test_a_tag_in_use_counts_the_sessions_that_never_end(steve):
    charge(steve, stop=None)
    charge(steve, stop=None, start=NOW)
    [tag] = get(steve, "/ocppTags?inTransaction=TRUE").json
    assert (tag["idTag"], tag["activeTransactionCount"]) == ("TAG-A", 2)


def test_numbers_are_used_up_by_starts_and_failures(steve):
    charge(steve)
    send(steve, "POST", "/ocppTags", {"idTag": "TAG-A"})
    assert steve.add_tag("NEXT").pk == 5


def test_no_order_of_tags_is_promised(steve):
    steve.add_tag("TAG-C")
    steve.set_parent("TAG-A", "TAG-C")
    assert [tag["idTag"] for tag in get(steve, "/ocppTags").json] == ["TAG-B", "TAG-C", "TAG-A"]


def test_the_parent_of_a_tag_can_change(steve):
    steve.add_tag("CHILD", parent="TAG-A")
    steve.set_parent("CHILD", "TAG-B")
    assert [t["idTag"] for t in get(steve, "/ocppTags?parentIdTag=tag-b").json] == ["CHILD"]
    with pytest.raises(KeyError):
        steve.set_parent("NOBODY", None)


# -- nasty data --------------------------------------------------------------------------------

MALFORMED = [
    {"startValue": "NaN"}, {"startValue": None}, {"startValue": "12.9"}, {"stopValue": "99999999999999999999"},
    {"connectorId": "one"}, {"startTimestamp": "yesterday"}, {"id": "7"}, {},
]  # fmt: skip


@pytest.mark.parametrize("odd", MALFORMED, ids=str)
def test_any_row_can_be_shown_whatever_is_wrong_with_it(steve, odd):
    before, row = (
        charge(steve),
        {"id": 2, "connectorId": 1, "chargeBoxId": BOX, "stopTimestamp": at(NOW), **odd},
    )
    injected = steve.inject(row)
    after = charge(steve, start=NOW - DAY)
    assert (before, injected, after) == (1, 2, 3)
    assert get(steve, "/transactions").json[1] == row
    assert get(steve, f"/transactions?transactionPk={injected}").json == [row]
    assert get(steve, f"/transactions/{injected}").json["transaction"] == row
    assert get(steve, "/transactions?type=ACTIVE").ids == []


def test_a_known_transaction_can_be_given_a_broken_face(steve):
    mine = charge(steve)
    row = transaction(steve, mine)
    del row["stopValue"]
    steve.inject({**row, "stopTimestamp": None}, mine)
    assert get(steve, "/transactions?type=ACTIVE").json == [{**row, "stopTimestamp": None}]


def test_ids_leave_holes_and_start_again_after_a_restore(steve):
    first = charge(steve)
    steve.snapshot()
    assert steve.skip_ids(27_678) == 27_680
    second = charge(steve, start=NOW - DAY)
    assert second == 27_680
    steve.restore()
    assert get(steve, "/transactions").ids == [first]
    again = charge(steve, start=NOW - 2 * DAY, tag="TAG-B", stop_wh=5)
    assert again == 2
    assert steve.truth() == {first: 1000, again: 5}
    assert [(e.transaction_id, e.delivered_wh) for e in steve.ledger() if not e.visible] == [(second, 1000)]
    steve.reset()
    assert get(steve, "/transactions").ids == []
    assert charge(steve) == 1


@pytest.mark.parametrize("release", ["3.7", "3.14"])
def test_a_start_that_commits_late_shows_up_below_ids_that_were_seen_before(steve):
    late = steve.start_transaction(BOX, 1, "TAG-A", NOW - HOUR, 0, committed=False)
    seen = charge(steve, connector=2, start=NOW - 2 * HOUR)
    assert (late, seen) == (1, 2)
    queries = ("", "?type=ACTIVE", f"?transactionPk={late}", f"?chargeBoxId={BOX}&ocppIdTag=TAG-A")
    assert [get(steve, f"/transactions{query}").ids for query in queries] == [[2], [], [], [2]]
    assert steve.stop_transaction(late, BOX, NOW, 700) == "unknown transaction"
    assert steve.truth() == {2: 1000}
    steve.commit(late)
    assert [get(steve, f"/transactions{query}").ids for query in queries] == [[2, 1], [1], [1], [2, 1]]
    assert steve.stop_transaction(late, BOX, NOW, 700) is None
    assert steve.truth() == {1: 700, 2: 1000}


def test_a_start_that_is_rolled_back_leaves_a_hole(steve):
    gone = steve.start_transaction(BOX, 1, "TAG-A", NOW - HOUR, 0, committed=False)
    steve.roll_back(gone)
    after = charge(steve, start=NOW - 2 * HOUR)
    assert (after, get(steve, "/transactions").ids) == (gone + 1, [after])
    assert [entry.transaction_id for entry in steve.ledger()] == [after]
    for end in (steve.commit, steve.roll_back):
        with pytest.raises(StoreError):
            end(gone)


def test_a_backup_lacks_what_is_not_committed_and_a_deletion_waits_for_it(steve):
    lacking = steve.start_transaction(BOX, 1, "TAG-A", NOW - HOUR, 0, committed=False)
    steve.snapshot()
    steve.commit(lacking)
    steve.restore()
    assert get(steve, "/transactions").ids == []
    assert [(entry.transaction_id, entry.visible) for entry in steve.ledger()] == [(lacking, False)]
    of_tag = steve.start_transaction("CP-2", 1, "TAG-A", NOW - HOUR, 0, committed=False)
    of_box = steve.start_transaction(BOX, 1, "TAG-B", NOW - HOUR, 0, committed=False)
    steve.delete_tag("TAG-A")
    steve.delete_charge_box(BOX)
    for number in (of_tag, of_box):
        with pytest.raises(StoreError):
            steve.commit(number)
    assert get(steve, "/transactions").ids == []


def test_an_old_database_gives_deleted_numbers_at_the_end_out_again_after_a_restart(steve):
    steve.add_tag("TAG-GONE")
    first = charge(steve)
    middle = charge(steve, tag="TAG-GONE", start=NOW - 5 * HOUR)
    kept = charge(steve, start=NOW - 3 * HOUR)
    gone = [charge(steve, tag="TAG-GONE", start=NOW - 2 * HOUR, box="CP-GONE", connector=n) for n in (1, 2)]
    pk = steve.store.find_tag("TAG-GONE").pk
    steve.delete_tag("TAG-GONE")
    steve.delete_charge_box("CP-GONE")
    steve.skip_ids(5)
    steve.restart_database()
    assert steve.add_tag("TAG-NEW").pk == pk
    again = [charge(steve, tag="TAG-NEW", box="CP-NEW", start=NOW - n * MINUTE, stop_wh=5) for n in (9, 8)]
    assert again == gone
    assert get(steve, "/transactions").ids == [*reversed(again), kept, first]
    assert transaction(steve, again[0])["ocppIdTag"] == "TAG-NEW"
    assert steve.truth() == {first: 1000, kept: 1000, **dict.fromkeys(again, 5)}
    lost = [(entry.transaction_id, entry.delivered_wh) for entry in steve.ledger() if not entry.visible]
    assert sorted(lost) == [(number, 1000) for number in (middle, *gone)]


def test_a_restart_ends_what_is_not_committed_and_changes_nothing_else(steve):
    kept = charge(steve)
    open_ = charge(steve, stop=None, start=NOW - 2 * MINUTE)
    number = steve.start_transaction(BOX, 2, "TAG-A", NOW - HOUR, 0, committed=False)
    steve.restart_database()
    with pytest.raises(StoreError):
        steve.commit(number)
    assert get(steve, "/transactions").ids == [open_, kept]
    assert charge(steve, start=NOW - MINUTE) == number
    steve.delete_tag("TAG-A")
    steve.restart_database()
    assert charge(steve, tag="TAG-B") == 1


def test_a_restore_needs_a_backup(steve):
    with pytest.raises(KeyError):
        steve.restore("never made")


def test_the_driver_of_a_test_can_tell_the_ledger_the_truth(steve):
    unknown = charge(steve, start_wh=1000, stop_wh=500)
    assert steve.truth() == {unknown: None}
    steve.note_delivered(unknown, 750)
    assert steve.truth() == {unknown: 750}


# -- generated sessions ------------------------------------------------------------------------


def test_the_same_seed_makes_the_same_sessions(steve):
    made = steve.generate(500, seed=7, days=10)
    with SteveSimulator() as other:
        other.set_clock(NOW, frozen=True)
        for id_tag in ("TAG-A", "TAG-B"):
            other.add_tag(id_tag)
        other.generate(500, seed=7, days=10)
        assert get(other, "/transactions").text == get(steve, "/transactions").text
        other.generate(10, seed=8)
        assert len(get(other, "/transactions").ids) == made.stopped + made.open + 10


def test_generated_registers_go_on_and_sessions_of_a_connector_do_not_overlap(steve):
    made = steve.generate(2000, seed=3, days=30, open_count=5, stuck_count=4)
    rows = sorted(get(steve, "/transactions").json, key=lambda row: row["id"])
    assert (
        sum(int(r["stopValue"]) - int(r["startValue"]) for r in rows if r["stopValue"]) == made.delivered_wh
    )
    by_connector = {}
    for row in rows:
        by_connector.setdefault((row["chargeBoxId"], row["connectorId"]), []).append(row)
    unfinished = 0
    for sessions in by_connector.values():
        for session, following in itertools.pairwise(sessions):
            if session["stopTimestamp"] is None:
                unfinished += 1
                continue
            assert session["stopTimestamp"] <= following["startTimestamp"]
            assert session["stopValue"] == following["startValue"]
    assert unfinished == 4
    assert len(get(steve, "/transactions?type=ACTIVE").ids) == made.open >= 9
    truth = steve.truth()
    assert all(truth[r["id"]] == int(r["stopValue"]) - int(r["startValue"]) for r in rows if r["stopValue"])
    assert rows[-1]["startTimestamp"] < at(NOW)


def test_generated_ids_follow_arrivals_not_starts(steve):
    made = steve.generate(2000, seed=3, days=30)
    store = steve.store
    starts, arrivals = list(store.start_ms), list(store.start_event_ms)
    assert list(store.ids) == list(range(made.first_id, made.last_id + 1))
    assert arrivals == sorted(arrivals)
    late = [row for row in range(1, len(starts)) if starts[row] < max(starts[:row])]
    assert 20 <= len(late) <= 200  # one in fifty, and what comes after it on the same connector
    assert max(max(starts[:row]) - starts[row] for row in late) > 12 * HOUR / timedelta(milliseconds=1)


def test_a_stop_can_be_seen_before_the_meter_values_that_came_with_it(steve):
    number = charge(steve, stop=None)
    end = sample(1, "1000", context="Transaction.End")
    steve.stop_transaction(number, BOX, NOW - MINUTE, 1000, transaction_data=[end], data_stored=False)
    assert (stop_of(steve, number), values(steve, number)) == (("1000", "station"), [])
    assert command(steve, "transaction-data", {"transaction_id": number}) == (200, {"ok": True})
    steve.store_transaction_data(number)
    assert values(steve, number) == ["1000"]


def test_more_sessions_cannot_stay_open_than_there_are(steve):
    with pytest.raises(ValueError, match="of only 1 sessions"):
        steve.generate(1, stuck_count=1)


def test_a_transaction_takes_a_hundred_bytes(steve):
    steve.generate(1_000, seed=1)
    tracemalloc.start()
    steve.generate(20_000, seed=1)
    held_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held_bytes / 20_000 < 130


def test_the_tables_find_ids_and_times_among_many(steve):
    steve.generate(30_000, seed=1, days=30)
    ids = range(12_345, 12_545)
    assert get(steve, f"/transactions?transactionPk={','.join(map(str, ids))}").ids == sorted(
        ids, reverse=True
    )
    everything = get(steve, "/transactions").json
    window = (at(NOW - 3 * DAY), at(NOW - 2 * DAY))
    within = [row["id"] for row in everything if window[0] <= row["startTimestamp"] <= window[1]]
    found = get(steve, f"/transactions?periodType=FROM_TO&from={window[0]}&to={window[1]}").ids
    assert found == within
    assert 900 < len(found) < 1100


def test_a_big_answer_is_streamed_and_complete(steve):
    steve.generate(5_000, seed=2)
    packed = get(steve, "/transactions", **{"Accept-Encoding": "identity"})
    assert packed.headers["transfer-encoding"] == "chunked"
    assert packed.ids == list(range(5_000, 0, -1))
    request = urllib.request.Request(
        f"{steve.base_url}/api/v1/transactions", headers={**credentials(steve), "Accept-Encoding": "gzip"}
    )
    with urllib.request.urlopen(request) as response:
        assert response.headers["content-encoding"] == "gzip"
        assert json.loads(gzip.decompress(response.read())) == packed.json


def test_a_big_answer_can_break_off_in_the_middle(steve):
    steve.generate(5_000, seed=2)
    steve.add_fault(Fault("truncate"))
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        get(steve, "/transactions")
    assert len(get(steve, "/transactions").ids) == 5_000


# -- time --------------------------------------------------------------------------------------


def test_costs_grow_with_the_history_for_active_and_tags_but_not_by_id():
    model, release = CostModel(), Release.parse("3.14")

    def delay_s(call, history, rows=1, release=release):
        return model.delay_s(release, call, history=history, rows=rows)

    assert 0.9 < delay_s("active", 300_000, 300) < 1.3
    assert 2.5 < delay_s("tags", 300_000, 0) < 3.0
    assert delay_s("by_id", 300_000) == delay_s("by_id", 0) < 0.08
    assert 0.15 < delay_s("by_id", 300_000, 200) < 0.2
    assert 0.35 < delay_s("window", 300_000, 1000) < 0.5
    assert 0.6 < delay_s("window", 300_000, 1000, Release.parse("3.9")) < 0.8
    assert 3.5 < delay_s("all", 300_000, 300_000) < 4.5
    assert delay_s("by_id", 300_000, release=Release.parse("3.6")) > 0.9
    assert delay_s("by_id", 0, release=Release.parse("3.7")) < 0.01


def test_a_cost_model_makes_calls_take_their_time():
    with SteveSimulator("3.14", cost_model=2) as steve:
        began = time.perf_counter()
        assert get(steve, "/transactions").status == 200
        assert time.perf_counter() - began > 0.13


# -- commands ----------------------------------------------------------------------------------


def command(steve, name, body=None, method="POST"):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{steve.url}/_sim/{name}", data=data, method=method)
    try:
        with urllib.request.urlopen(request) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_the_charge_point_side_can_be_driven_from_another_process(steve):
    start = {"charge_box": BOX, "connector": 1, "id_tag": "TAG-A", "at": at(NOW - HOUR), "meter_wh": 100}
    assert command(steve, "start", start) == (200, {"transaction_id": 1, "id_tag_status": "Accepted"})
    samples = [{"at": at(NOW - MINUTE), "value": "600"}]
    meter = {"charge_box": BOX, "connector": 1, "samples": samples, "transaction_id": 1}
    assert command(steve, "meter", meter) == (200, {"stored": True})
    stop = {"transaction_id": 1, "charge_box": BOX, "at": at(NOW), "meter_wh": 50}
    assert command(steve, "stop", stop) == (200, {"stored": False, "why": "register below the start"})
    assert command(steve, "manual-stop", {"transaction_id": 1}) == (200, {"ok": True})
    assert stop_of(steve, 1) == ("600", "manual")
    assert command(steve, "delivered", {"transaction_id": 1, "delivered_wh": 512})[0] == 200
    [entry] = command(steve, "ledger", method="GET")[1]
    assert (entry["delivered_wh"], entry["stopped"], entry["visible"]) == (512, True, True)
    state = command(steve, "state", method="GET")[1]
    assert (state["release"], state["transactions"], len(state["failed_stops"])) == ("3.14.1", 1, 1)


def test_the_database_can_be_driven_from_another_process(steve):
    assert command(steve, "generate", {"count": 20, "seed": 1})[1]["last_id"] == 20
    assert command(steve, "snapshot", {})[0] == 200
    assert command(steve, "skip-ids", {"count": 5})[1] == {"next_transaction_id": 26}
    assert command(steve, "inject", {"raw": {"id": 26}})[1] == {"transaction_id": 26}
    start = {"charge_box": BOX, "connector": 1, "id_tag": "TAG-A", "at": at(NOW - HOUR), "meter_wh": 100}
    for act, number in (("commit", 27), ("roll-back", 28)):
        assert command(steve, "start", {**start, "committed": False, "meter_wh": number})[0] == 200
        assert command(steve, act, {"transaction_id": number}) == (200, {"ok": True})
    assert command(steve, "commit", {"transaction_id": 28})[0] == 409
    assert command(steve, "restore", {})[0] == 200
    assert command(steve, "state", method="GET")[1]["next_transaction_id"] == 21
    assert command(steve, "tags", {"id_tag": "KID", "parent": "TAG-A"})[0] == 200
    assert command(steve, "parent", {"id_tag": "KID", "parent": "TAG-B"})[0] == 200
    assert command(steve, "delete-tag", {"id_tag": "TAG-A"})[0] == 200
    assert command(steve, "online", {"charge_boxes": [BOX]})[1] == {"charge_boxes": [BOX]}
    assert command(steve, "load-recording", {"release": "3.9", "shift_s": 60})[1]["transactions"] == 18
    assert command(steve, "restart-database")[0] == 200
    assert command(steve, "reset")[0] == 200
    assert get(steve, "/transactions").ids == []


def test_what_steve_refuses_is_a_409_and_what_makes_no_sense_a_400(steve):
    start = {
        "charge_box": BOX,
        "connector": 1,
        "id_tag": "TAG-A",
        "at": "1970-01-01T00:00:00Z",
        "meter_wh": 0,
    }
    assert command(steve, "start", start)[0] == 409
    assert command(steve, "manual-stop", {"transaction_id": 1})[0] == 409
    assert command(steve, "tags", {"id_tag": "TAG-A"})[0] == 409
    assert command(steve, "start", {"charge_box": BOX})[0] == 400
    assert command(steve, "start", [1])[0] == 400
    assert command(steve, "no-such-command", {})[0] == 404
    with pytest.raises(StoreError):
        steve.manual_stop(1)


def test_the_server_runs_from_the_command_line_until_it_is_told_to_stop():
    code = (
        "import argparse, sys; from ocpp_billing.simulators.steve_command import configure, run;"
        "parser = argparse.ArgumentParser(); configure(parser); sys.exit(run(parser.parse_args()))"
    )
    arguments = [
        "--release",
        "3.9",
        "--count",
        "30",
        "--recording",
        "3.9",
        "--port",
        "0",
        "--credentials",
        "me:mine",
    ]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True, env=os.environ
    )
    try:
        assert process.stdout.readline() == "StEvE 3.9.0, 48 transactions, HTTP Basic\n"
        url = process.stdout.readline().strip()
        request = urllib.request.Request(
            f"{url}/api/v1/transactions", headers={"Authorization": "Basic bWU6bWluZQ=="}
        )
        with urllib.request.urlopen(request) as response:
            assert len(json.load(response)) == 48
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--release", "3.5"], "StEvE 3.5 is not simulated"),
        (["--recording", "3.8", "--port", "0"], "StEvE 3.8 was not recorded"),
        (["--credentials", "nobody"], "must look like USER:PASSWORD"),
    ],
)
def test_the_command_says_in_one_line_why_it_cannot_begin(capsys, arguments, message):
    from ocpp_billing.simulators.steve_command import run

    parser = argparse.ArgumentParser()
    configure(parser)
    assert run(parser.parse_args(arguments)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_port_that_is_taken_is_named(capsys, steve):
    from ocpp_billing.simulators.steve_command import run

    parser = argparse.ArgumentParser()
    configure(parser)
    assert run(parser.parse_args(["--port", str(steve.port)])) == 1
    assert f"cannot listen on 127.0.0.1:{steve.port}: Address already in use" in capsys.readouterr().err


# -- StEvE's own description of its API --------------------------------------------------------


@pytest.fixture(scope="module")
def schemas():
    if not CONTRACT.exists():
        pytest.skip(f"{CONTRACT.name} is not beside the checkout")
    return json.loads(CONTRACT.read_text())["components"]["schemas"]


def misfits(value, schema, schemas, where="body"):
    """Where a value is not as described; null is allowed everywhere, as the real servers send it."""
    if "$ref" in schema:
        schema = schemas[schema["$ref"].rpartition("/")[2]]
    if value is None:
        return []
    kinds = {"object": dict, "array": list, "string": str, "integer": int, "boolean": bool}
    kind = kinds[schema["type"]]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        return [f"{where}: {value!r} is no {schema['type']}"]
    if "enum" in schema and value not in schema["enum"]:
        return [f"{where}: {value!r} is none of {schema['enum']}"]
    if schema.get("format") == "date-time":
        datetime.fromisoformat(value)
    if kind is list:
        return [m for i, v in enumerate(value) for m in misfits(v, schema["items"], schemas, f"{where}[{i}]")]
    if kind is dict:
        described = schema["properties"]
        wrong = (
            [f"{where}: {sorted(set(value) ^ set(described))} not on both sides"]
            if set(value) != set(described)
            else []
        )
        return wrong + [
            m
            for k in set(value) & set(described)
            for m in misfits(value[k], described[k], schemas, f"{where}.{k}")
        ]
    return []


def test_answers_fit_steves_own_description(steve, schemas):
    steve.load_recording()
    steve.online.add("CP-PARIS-07")
    described = {
        "/transactions": {"type": "array", "items": {"$ref": "Transaction"}},
        "/transactions/13?energyValuesOnly=false": {"$ref": "TransactionDetails"},
        "/transactions/99": {"$ref": "ApiErrorResponse"},
        "/transactions?type=FOO": {"$ref": "ApiErrorResponse"},
        "/ocppTags": {"type": "array", "items": {"$ref": "OcppTagOverview"}},
        "/ocppTags/1": {"$ref": "OcppTagOverview"},
    }
    for path, schema in described.items():
        assert misfits(get(steve, path).json, schema, schemas, path) == []
    body = {"chargeBoxIdList": ["CP-PARIS-07"], "transactionId": 14}
    answer = send(steve, "POST", "/operations/RemoteStopTransaction", body)
    assert answer.status == 200
    assert misfits(answer.json, {"$ref": "OcppOperationResponseRemoteStartStopStatus"}, schemas) == []
