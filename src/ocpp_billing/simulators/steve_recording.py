"""Puts a simulated StEvE into the state of a recorded one, with all times moved if wanted.

The files are answers of real servers (release 3.7.1, 3.9.0 and 3.14.1, 2026-11-22); ``traffic.json`` says
what the charge points did.
"""

from __future__ import annotations

import json
import re
from datetime import datetime, timedelta
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final, Literal

from ocpp_billing.simulators.steve_store import ACTORS, MeterValue, SteveStore, to_ms
from ocpp_billing.simulators.steve_time import iso_ms

if TYPE_CHECKING:
    from collections.abc import Callable
    from importlib.resources.abc import Traversable

    from ocpp_billing.simulators.steve_release import Release

RECORDED: Final = ("3.14.1", "3.9.0", "3.7.1")
State = Literal["012", "end"]
_SECOND_DAY_OF_1970_MS: Final = 2 * 86_400_000
_ISO = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\.\d{3}Z")

DELIVERED_WH: Final[dict[str, int | None]] = {
    "plain": 12_345,
    "zero_energy": 0,
    "negative": None,
    "stop_before_start": 2_655,
    "stop_in_future": 3_000,
    "offline_9_days": 21_000,
    "thirty_hours": 44_000,
    "unknown_tag": 3_500,
    "tag_other_case": 1_500,
    "duplicate_stop": 3_000,
    "duplicate_start": 500,
    "clock_1970": 1_000,
    "mixed_units": 2_700,
    "running": None,
    "zombie": None,
    "register_zero": 7_200,
    "child_tag": 22_200,
}
"""What the charge points of the recording really delivered, by scenario; None: unknown or not finished."""
NEWER_THAN_ZOMBIE_WH: Final = 6_000


class Recording:
    """The recorded answers of one release."""

    def __init__(self, release: str) -> None:
        """Find the files.

        Raises:
            ValueError: for a release that was not recorded; 3.14, 3.9 and 3.7 name the recorded patch.
        """
        minor = {".".join(full.split(".")[:2]): full for full in RECORDED}
        self.release = minor.get(release, release)
        if self.release not in RECORDED:
            raise ValueError(f"StEvE {release} was not recorded; choose one of {', '.join(RECORDED)}")
        self._folder: Traversable = files("ocpp_billing.simulators").joinpath(
            "recordings", f"steve-{self.release}"
        )

    def body(self, name: str) -> Any:
        """The recorded body of an exchange by the name after its number; None when there is none."""
        for file in self._folder.iterdir():
            if file.name.endswith(f"-{name}.json"):
                return json.loads(file.read_text(encoding="utf-8"))["response"]["body"]
        return None

    def traffic(self) -> dict[str, Any]:
        """What the charge points did."""
        content: dict[str, Any] = json.loads(
            self._folder.joinpath("traffic.json").read_text(encoding="utf-8")
        )
        return content

    def clock(self) -> datetime:
        """The charge points' clock when they played their scenarios."""
        return datetime.fromisoformat(self.traffic()["charge_points_clock_utc"])

    def newest(self) -> datetime:
        """The latest start or stop that was not in the future then."""
        times = [
            to_ms(row[name])
            for row in self.body("transactions-all")
            for name in ("startTimestamp", "stopTimestamp")
            if row[name] is not None
        ]
        latest = max(time for time in times if time <= to_ms(self.clock()))
        return datetime.fromisoformat(iso_ms(latest))


def recording_offset(
    now: datetime, release: str = "3.14.1", *, before: timedelta = timedelta(hours=1)
) -> timedelta:
    """The shift, in whole seconds, that puts the newest recorded time ``before`` now.

    The stops in the future of 3.7.1 and 3.9.0 stay in the future, since they lie a day ahead.
    """
    shift = now - before - Recording(release).newest()
    return timedelta(seconds=shift // timedelta(seconds=1))


def recorded_store(
    release: Release, recording: Recording, *, state: State = "012", shift: timedelta | None = None
) -> SteveStore:
    """The recorded server's tables.

    Args:
        release: the simulated release, which may be another than the recorded.
        recording: whose answers.
        state: ``012``: after the charge points' scenarios; ``end``: after the book-keeping stops and
            the changes to tags as well.
        shift: added to every time except those of 1970.
    """
    moved = _mover(shift or timedelta())
    store = SteveStore()
    _load_tags(store, recording, state, moved)
    events = _events(recording)
    name = "transactions-all" if state == "012" else "transactions-all-end"
    for row in sorted(recording.body(name), key=lambda row: int(row["id"])):
        _load_transaction(store, release, row, events, moved)
    _load_values(store, recording, moved)
    _load_truth(store, recording)
    return store


def _mover(shift: timedelta) -> Callable[[str], int]:
    shift_ms = shift // timedelta(milliseconds=1)

    def moved(text: str) -> int:
        ms = to_ms(text)
        return ms if ms < _SECOND_DAY_OF_1970_MS else ms + shift_ms

    return moved


def _load_tags(store: SteveStore, recording: Recording, state: State, moved: Callable[[str], int]) -> None:
    tags = {tag["ocppTagPk"]: tag for tag in recording.body("tags-all")}
    if state == "end":
        changed = recording.body("tag-after-partial-put")
        tags[changed["ocppTagPk"]] = changed
    for tag in sorted(tags.values(), key=lambda tag: int(tag["ocppTagPk"])):
        note, expiry = tag["note"], tag["expiryDate"]
        store.add_tag(
            tag["idTag"],
            parent=tag["parentIdTag"],
            max_active=tag["maxActiveTransactionCount"],
            expiry_ms=None if expiry is None else moved(expiry),
            note=None if note is None else _ISO.sub(lambda match: iso_ms(moved(match[0])), note),
            pk=tag["ocppTagPk"],
        )
        store.set_user(tag["ocppTagPk"], tag.get("userPk"))


def _events(recording: Recording) -> dict[int, tuple[str, str]]:
    """Times of arrival of start and stop, where the report shows them."""
    report = recording.body("csv-report")
    if report is None:
        return {}
    rows = (line.split(",") for line in report.splitlines()[1:])
    return {int(row[0]): (row[3], row[7]) for row in rows}


def _load_transaction(
    store: SteveStore,
    release: Release,
    row: dict[str, Any],
    events: dict[int, tuple[str, str]],
    moved: Callable[[str], int],
) -> None:
    connector = store.connector(row["chargeBoxId"], row["connectorId"], numbers_used_always=not release.evse)
    text = store.tag_text(row["ocppIdTag"])
    start_ms = moved(row["startTimestamp"])
    start_event, stop_event = events.get(row["id"], (row["startTimestamp"], row["stopTimestamp"]))
    number = store.insert(
        connector, text, start_ms, int(row["startValue"]), moved(start_event), transaction_id=row["id"]
    )
    if row["stopTimestamp"] is not None:
        store.set_stop(
            number,
            moved(row["stopTimestamp"]),
            int(row["stopValue"]),
            row["stopReason"],
            ACTORS.index(row["stopEventActor"]),
            moved(stop_event),
        )


def _load_values(store: SteveStore, recording: Recording, moved: Callable[[str], int]) -> None:
    for name in ("details", "details-mixed-units-all-values", "details-running", "details-zombie"):
        body = recording.body(name)
        if body is None:
            continue
        pk = body["transaction"]["id"]
        row = store.row_of(pk)
        if row is None:
            continue
        for value in body["values"]:
            store.add_value(
                store.connector_of[row],
                MeterValue(
                    at_ms=moved(value["valueTimestamp"]),
                    value=value["value"],
                    context=value["readingContext"],
                    format=value["format"],
                    measurand=value["measurand"],
                    location=value["location"],
                    unit=value["unit"],
                    phase=value["phase"],
                    transaction_pk=pk,
                ),
            )


def _load_truth(store: SteveStore, recording: Recording) -> None:
    for scenario in recording.traffic()["scenarios"]:
        name = scenario["scenario"]
        pk = scenario.get("tx") or scenario.get("start_reply", {}).get("transactionId")
        if name not in DELIVERED_WH or pk is None:
            continue
        _note(store, pk, DELIVERED_WH[name], ended=name not in {"running", "zombie"})
        if "newer" in scenario:
            _note(store, scenario["newer"], NEWER_THAN_ZOMBIE_WH, ended=True)


def _note(store: SteveStore, pk: int, delivered_wh: int | None, *, ended: bool) -> None:
    row = store.row_of(pk)
    if row is None:
        return
    store.ended[row] = ended
    if delivered_wh is not None:
        store.delivered_wh[row] = delivered_wh
