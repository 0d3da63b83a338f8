"""What we make of StEvE's answers, row by row."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocpp_billing.steve import wire
from ocpp_billing.steve.errors import NotJson, Unreachable

RECORDINGS = Path(__file__).parents[1] / "fixtures" / "recordings"
RELEASES = ("3.7.1", "3.9.0", "3.14.1")

STOPPED: dict[str, Any] = {
    "id": 12,
    "connectorId": 1,
    "chargeBoxPk": 2,
    "ocppTagPk": 8,
    "chargeBoxId": "CP-BERLIN-01",
    "ocppIdTag": "TAG-ALICE",
    "userId": None,
    "startValue": "100000",
    "startTimestamp": "2026-11-22T17:49:29.000Z",
    "stopValue": "112345",
    "stopReason": "Local",
    "stopTimestamp": "2026-11-22T19:19:29.000Z",
    "stopEventActor": "station",
}
RUNNING = STOPPED | {"stopValue": None, "stopReason": None, "stopTimestamp": None, "stopEventActor": None}


def recorded(release: str, name: str) -> Any:
    (file,) = (RECORDINGS / f"steve-{release}").glob(f"[0-9][0-9][0-9]-{name}.json")
    return json.loads(file.read_text())["response"]["body"]


def decode(*rows: Any) -> wire.TransactionsAnswer:
    return wire.decode_transactions(json.dumps(rows).encode())


def the_row(**changes: Any) -> wire.Transaction:
    answer = decode(STOPPED | changes)
    assert answer.malformed == []
    return answer.rows[0]


def the_reason(**changes: Any) -> str:
    """Why a row with these changes is malformed, beside two good neighbours that go on."""
    answer = decode(STOPPED | {"id": 1}, STOPPED | changes, STOPPED | {"id": 3})
    assert [row.steve_id for row in answer.rows] == [1, 3]
    return answer.malformed[0].reason


def test_a_stopped_transaction_is_read_as_texts_and_as_what_they_mean():
    row = the_row()
    assert (row.steve_id, row.connector_id, row.id_tag_pk) == (12, 1, 8)
    assert (row.charge_box_id, row.id_tag) == ("CP-BERLIN-01", "TAG-ALICE")
    assert (row.start_value, row.stop_value) == ("100000", "112345")
    assert (row.start_wh, row.stop_wh) == (100_000, 112_345)
    assert row.start_timestamp == "2026-11-22T17:49:29.000Z"
    assert row.started_at == datetime(2026, 11, 22, 17, 49, 29, tzinfo=UTC)
    assert row.stopped_at == datetime(2026, 11, 22, 19, 19, 29, tzinfo=UTC)
    assert (row.stop_reason, row.stop_actor) == ("Local", "station")


def test_a_running_transaction_has_no_stop():
    row = decode(RUNNING).rows[0]
    assert (row.stop_wh, row.stopped_at, row.stop_reason, row.stop_actor) == (None, None, None, None)


@pytest.mark.parametrize("release", RELEASES)
def test_every_recorded_transaction_is_well_formed(release: str):
    body = recorded(release, "transactions-all")
    answer = wire.decode_transactions(json.dumps(body).encode())
    assert answer.malformed == []
    assert [row.steve_id for row in answer.rows] == list(range(18, 0, -1))
    delivered_wh = {r.steve_id: r.stop_wh - r.start_wh for r in answer.rows if r.stop_wh is not None}
    assert delivered_wh[1] == 12_345
    assert delivered_wh[7] == 44_000
    assert delivered_wh[18] == 22_200


def test_a_session_whose_register_went_backwards_is_a_fact_and_not_malformed():
    row = the_row(startValue="5000", stopValue="-4000")
    assert (row.start_wh, row.stop_wh) == (5_000, -4_000)


def test_a_null_start_time_as_recorded_on_3_7_1_after_2038_is_no_reason_to_set_a_row_aside():
    row = the_row(startTimestamp=None)
    assert row.started_at is None
    assert row.stop_wh == 112_345


def test_a_stop_value_without_a_stop_time_is_still_running_and_the_value_is_kept():
    row = the_row(stopTimestamp=None)
    assert (row.stopped_at, row.stop_wh, row.stop_value) == (None, None, "112345")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"stopValue": "NaN"}, 'stopValue: "NaN" is not a whole number of Wh'),
        ({"stopValue": ""}, "stopValue: empty is not a whole number of Wh"),
        ({"stopValue": "12.5"}, 'stopValue: "12.5" is not a whole number of Wh'),
        ({"stopValue": "1e3"}, 'stopValue: "1e3" is not a whole number of Wh'),
        ({"stopValue": "+5"}, 'stopValue: "+5" is not a whole number of Wh'),
        ({"stopValue": " 5"}, 'stopValue: " 5" is not a whole number of Wh'),
        ({"stopValue": "1_000"}, 'stopValue: "1_000" is not a whole number of Wh'),
        ({"stopValue": "-"}, 'stopValue: "-" is not a whole number of Wh'),
        ({"stopValue": "--5"}, 'stopValue: "--5" is not a whole number of Wh'),
        ({"stopValue": "\u0665"}, 'stopValue: "\u0665" is not a whole number of Wh'),
        ({"stopValue": "2147483648"}, 'stopValue: "2147483648" is beyond the 32-bit register of OCPP'),
        ({"stopValue": "-2147483649"}, 'stopValue: "-2147483649" is beyond the 32-bit register of OCPP'),
        ({"startValue": "9" * 200}, f'startValue: "{"9" * 39}…" is beyond the 32-bit register of OCPP'),
        ({"startValue": "12.5"}, 'startValue: "12.5" is not a whole number of Wh'),
        ({"startValue": None}, "startValue: is null"),
        ({"startValue": 100000}, "startValue: expected `str | null`, got `int`"),
        ({"stopValue": None}, "stopValue: is null although stopTimestamp is set"),
        ({"stopTimestamp": "yesterday"}, 'stopTimestamp: "yesterday" is not a point in time'),
        ({"stopTimestamp": "2026-11-22T19:19:29"}, 'stopTimestamp: "2026-11-22T19:19:29" has no time zone'),
        ({"startTimestamp": "2026-02-30T00:00:00Z"}, 'startTimestamp: "2026-02-30T00:00:00Z" is not a point in time'),
        ({"startTimestamp": "0001-01-01T00:00:00+02:00"}, 'startTimestamp: "0001-01-01T00:00:00+02:00" is not a point in time'),
        ({"startTimestamp": "+292278994-08-17T07:12:55.807Z"}, 'startTimestamp: "+292278994-08-17T07:12:55.807Z" is not a point in time'),
        ({"startTimestamp": 1795369769000}, "startTimestamp: expected `str | null`, got `int`"),
        ({"id": "12"}, "id: expected `int`, got `str`"),
        ({"id": 0}, "id: expected `int` >= 1"),
        ({"id": 2**63}, "id: expected `int` <= 9223372036854775807"),
        ({"connectorId": 2**31}, "connectorId: expected `int` <= 2147483647"),
        ({"connectorId": None}, "connectorId: expected `int`, got `null`"),
        ({"connectorId": True}, "connectorId: expected `int`, got `bool`"),
        ({"chargeBoxId": None}, "chargeBoxId: expected `str`, got `null`"),
        ({"ocppIdTag": "x" * 256}, "ocppIdTag: expected `str` of length <= 255"),
        ({"ocppIdTag": "TAG\0ALICE"}, "a text: contains a NUL character"),
        ({"stopReason": "\0"}, "a text: contains a NUL character"),
        ({"startTimestamp": "2026-11-22\0" + "17:49:29Z"}, "a text: contains a NUL character"),
        ({"ocppIdTag": "\ud800"}, "JSON is malformed"),
    ],
)  # fmt: skip
def test_a_row_of_the_wrong_shape_is_set_aside_with_its_reason(changes: dict[str, Any], reason: str):
    assert the_reason(**changes).startswith(reason)


@pytest.mark.parametrize("text", ["007", "-0", "2147483647", "-2147483648", "00000000000000000012"])
def test_whole_numbers_of_32_bits_are_taken_however_they_are_padded(text: str):
    assert the_row(startValue=text).start_wh == int(text)


def test_a_key_that_is_gone_is_malformed_rather_than_a_session_that_never_ends():
    renamed = {key: value for key, value in STOPPED.items() if key != "stopTimestamp"}
    answer = decode(renamed | {"stoppedAt": STOPPED["stopTimestamp"]})
    assert "stopTimestamp" in answer.malformed[0].reason


def test_fields_that_a_release_adds_are_ignored():
    assert the_row(evsePk=4, somethingNew={"deep": [1, 2]}) == the_row()


def test_a_malformed_row_keeps_its_text_and_its_number():
    answer = decode(STOPPED | {"id": 77, "stopValue": "NaN"})
    assert answer.malformed[0].steve_id == 77
    assert json.loads(answer.malformed[0].raw)["stopValue"] == "NaN"


@pytest.mark.parametrize("row", [None, 1, "x", [], {}, {"id": "12"}, {"id": -4}, {"id": True}])
def test_a_row_without_a_readable_number_is_still_set_aside(row: Any):
    answer = decode(row, STOPPED)
    assert len(answer.rows) == 1
    assert answer.malformed[0].steve_id is None


def test_the_text_of_a_huge_malformed_row_is_cut():
    answer = decode(STOPPED | {"id": 5, "stopValue": "NaN", "junk": "y" * 100_000})
    assert len(answer.malformed[0].raw) == wire.LONGEST_RAW
    assert answer.malformed[0].steve_id == 5


def test_a_row_that_is_not_utf_8_costs_itself_only():
    good = json.dumps(STOPPED).encode()
    answer = wire.decode_transactions(b"[" + good.replace(b"TAG-ALICE", b"TAG-\xff") + b"," + good + b"]")
    assert len(answer.rows) == 1
    assert answer.malformed[0].reason == "text that is not UTF-8"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "nothing"),
        (b"<html><body>Sign in</body></html>", "a web page"),
        (b"{not json", "not what its API says"),
        (b'{"id": 1}', "not what its API says"),
        (b"null", "not what its API says"),
        (b"[1] trailing", "trailing"),
        (b"\x89PNG\r\n\x1a\n", "not what its API says"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[" + b"[" * 100_000 + b"]" * 100_001, "nested too deeply"),
    ],
)
def test_an_answer_that_is_no_list_is_said_to_be_none(body: bytes, words: str):
    with pytest.raises(NotJson, match=words):
        wire.decode_transactions(body)


@pytest.mark.parametrize("end", [1, 50, 400])
def test_an_answer_that_breaks_off_is_told_from_one_that_is_not_json(end: int):
    body = json.dumps([STOPPED] * 3).encode()
    with pytest.raises(Unreachable, match="broke off"):
        wire.decode_transactions(body[:end])


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
NEARLY_ROWS = st.builds(
    lambda changes, gone: {key: value for key, value in (STOPPED | changes).items() if key not in gone},
    st.dictionaries(st.sampled_from(sorted(STOPPED)), JSON_VALUES, max_size=3),
    st.sets(st.sampled_from(sorted(STOPPED)), max_size=1),
)


@given(st.lists(JSON_VALUES | NEARLY_ROWS, max_size=8), st.booleans())
def test_no_row_is_ever_lost_whatever_a_list_holds(items: list[Any], ascii_only: bool):
    body = json.dumps(items, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    answer = wire.decode_transactions(body)
    assert len(answer.rows) + len(answer.malformed) == len(items)
    tags = wire.decode_tags(body)
    assert len(tags.rows) + len(tags.malformed) == len(items)


@given(st.binary(max_size=200) | JSON_VALUES.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_at_all_give_an_answer_or_the_typed_error(body: bytes):
    for decoder in (
        wire.decode_transactions,
        wire.decode_tags,
        wire.decode_details,
        wire.decode_report,
    ):
        with suppress(NotJson, Unreachable):
            decoder(body)


def test_the_fingerprint_is_the_sha_256_of_the_five_values_as_given():
    text = '["CP-BERLIN-01",1,"TAG-ALICE","2026-11-22T17:49:29.000Z","100000"]'
    assert wire.fingerprint(the_row()) == hashlib.sha256(text.encode()).digest()


@given(st.text(max_size=40), st.integers(-(2**31), 2**31 - 1), st.text(max_size=40), st.booleans())
def test_the_fingerprint_is_that_of_compact_utf_8_json_for_any_text(
    charge_box_id: str, connector_id: int, id_tag: str, has_start: bool
):
    changes = {"chargeBoxId": charge_box_id, "connectorId": connector_id, "ocppIdTag": id_tag}
    answer = decode(STOPPED | changes | ({} if has_start else {"startTimestamp": None}))
    if "\0" in charge_box_id + id_tag:
        assert len(answer.malformed) == 1
        return
    start = STOPPED["startTimestamp"] if has_start else None
    text = json.dumps(
        [charge_box_id, connector_id, id_tag, start, "100000"], separators=(",", ":"), ensure_ascii=False
    )
    assert wire.fingerprint(answer.rows[0]) == hashlib.sha256(text.encode()).digest()


@pytest.mark.parametrize(
    "change",
    [
        {"chargeBoxId": "CP-BERLIN-02"},
        {"connectorId": 2},
        {"ocppIdTag": "tag-alice"},
        {"startTimestamp": "2026-11-22T17:49:29.001Z"},
        {"startTimestamp": None},
        {"startValue": "0100000"},
    ],
)
def test_another_session_has_another_fingerprint(change: dict[str, Any]):
    assert wire.fingerprint(the_row(**change)) != wire.fingerprint(the_row())


@pytest.mark.parametrize(
    "change",
    [{"id": 99}, {"ocppTagPk": 99}, {"stopValue": "112346"}, {"stopEventActor": "manual"}, {"userId": 3}],
)
def test_a_stop_a_migration_or_a_new_owner_leaves_the_fingerprint_as_it_was(change: dict[str, Any]):
    assert wire.fingerprint(the_row(**change)) == wire.fingerprint(the_row())


def test_a_hundred_thousand_rows_are_decoded_and_fingerprinted():
    body = json.dumps([STOPPED | {"id": number} for number in range(1, 100_001)]).encode()
    answer = wire.decode_transactions(body)
    prints = {wire.fingerprint(row) for row in answer.rows}
    assert (len(answer.rows), len(prints)) == (100_000, 1)


@pytest.mark.parametrize("release", RELEASES)
def test_every_recorded_tag_is_read(release: str):
    body = recorded(release, "tags-all")
    answer = wire.decode_tags(json.dumps(body).encode())
    assert answer.malformed == []
    assert len(answer.rows) == len(body) == 57
    by_text = {tag.id_tag: tag for tag in answer.rows}
    assert (by_text["TAG-FLEET-01"].parent_id_tag, by_text["TAG-FLEET-01"].note) == ("TAG-FLEET", "van 1")
    assert by_text["UNKNOWN-TAG-1"].is_blocked
    assert by_text["TAG-DAVE"].in_transaction


def test_a_tag_with_an_expiry_has_it_in_utc():
    tag = recorded("3.14.1", "tag-by-pk") | {"expiryDate": "2026-11-21T21:49:29.000+01:00"}
    (read,) = wire.decode_tags(json.dumps([tag]).encode()).rows
    assert read.expires_at == datetime(2026, 11, 21, 20, 49, 29, tzinfo=UTC)


def test_one_malformed_tag_is_set_aside_with_its_number():
    tags = recorded("3.14.1", "tags-in-transaction")
    answer = wire.decode_tags(json.dumps([*tags, tags[0] | {"blocked": "no"}]).encode())
    assert len(answer.rows) == len(tags)
    assert answer.malformed[0].steve_id == tags[0]["ocppTagPk"]
    assert answer.malformed[0].reason == "blocked: expected `bool`, got `str`"


def test_details_hold_the_transaction_and_its_mixed_meter_values():
    details = wire.decode_details(json.dumps(recorded("3.14.1", "details-mixed-units")).encode())
    assert details.transaction.steve_id == 13
    assert {(v.value, v.unit, v.phase) for v in details.values} >= {
        ("80.9", "kWh", None),
        ("300", "Wh", "L1"),
        ("81.8", "kWh", None),
    }
    assert details.values[0].measured_at == datetime(2026, 11, 22, 20, 14, 29, tzinfo=UTC)


def test_one_malformed_meter_value_is_set_aside():
    body = recorded("3.14.1", "details-running")
    body["values"].append({"valueTimestamp": "noon"} | dict.fromkeys(
        ("value", "readingContext", "format", "measurand", "location", "unit", "phase")
    ))  # fmt: skip
    details = wire.decode_details(json.dumps(body).encode())
    assert details.transaction.steve_id == 14
    assert [row.reason for row in details.malformed] == ['valueTimestamp: "noon" is not a point in time']


def test_details_of_a_malformed_transaction_are_an_error_that_says_why():
    body = recorded("3.14.1", "details-running")
    body["transaction"]["startValue"] = "NaN"
    with pytest.raises(NotJson, match=r'startValue: "NaN" is not a whole number of Wh'):
        wire.decode_details(json.dumps(body).encode())


def test_the_report_says_when_stops_arrived():
    answer = wire.decode_report(recorded("3.14.1", "csv-report").encode("latin-1"))
    assert answer.malformed == []
    offline = next(row for row in answer.rows if row.steve_id == 6)
    assert offline.stopped_at == datetime(2026, 11, 14, 0, 49, 29, tzinfo=UTC)
    assert offline.stop_received_at == datetime(2026, 11, 22, 20, 49, 35, 248_000, tzinfo=UTC)
    assert (offline.start_value, offline.stop_value, offline.stop_reason) == ("5000", "26000", "Local")


def test_the_report_of_3_12_with_its_other_second_column_is_read_too():
    text = recorded("3.14.1", "csv-report").replace("evse_pk", "connector_pk", 1)
    assert len(wire.decode_report(text.encode("latin-1")).rows) == text.count("\n") - 1


def test_nulls_commas_and_umlauts_in_the_report_are_read():
    header = recorded("3.14.1", "csv-report").partition("\n")[0]
    line = '3,2,"TÄG,1",2026-11-22T20:49:35Z,"",5,manual,2026-11-22T20:49:36Z,2026-11-22T20:00:00Z,6,""'
    row = wire.decode_report(f"{header}\n{line}\n".encode("latin-1")).rows[0]
    assert (row.id_tag, row.started_at, row.stop_reason) == ("TÄG,1", None, None)


@pytest.mark.parametrize("line", ["1,2,3", "x,2,T,2026-11-22T20:49:35Z,,5,,2026-11-22T20:49:36Z,,6,"])
def test_a_malformed_line_of_the_report_is_set_aside(line: str):
    header, good, *_ = recorded("3.14.1", "csv-report").splitlines()
    answer = wire.decode_report(f"{header}\n{line}\n{good}\n".encode())
    assert (len(answer.rows), len(answer.malformed)) == (1, 1)
    assert answer.malformed[0].raw == line
