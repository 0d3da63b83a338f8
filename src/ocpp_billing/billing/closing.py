"""Stuck sessions before a person: what each is worth, and closing one in StEvE.

Closing is a book-keeping act: StEvE (>= 3.12) writes a stop of its own making and tells the charger
nothing. What it would write is foretold and compared with our evidence first, because it cannot be taken
back. The stop that StEvE then shows is judged by that evidence like every other manual stop.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from django.db import connection

from ocpp_billing import clock
from ocpp_billing.accounts import audit
from ocpp_billing.billing.offers import Act, acts_of
from ocpp_billing.billing.rules import EVIDENCE_TOLERANCE_WH
from ocpp_billing.charging.ingest import ingest_transactions
from ocpp_billing.charging.mask import last4
from ocpp_billing.charging.models import ChargingSession, SessionState, Source
from ocpp_billing.charging.stuck import (
    Finding,
    evidence_of_next_start,
    hear,
    read_unfinished,
    store_evidence,
    weigh,
)
from ocpp_billing.database import fenced_transaction
from ocpp_billing.energy import say_kwh
from ocpp_billing.mappings.resolve import Inactive, Mapped, Unmapped, resolve_mapping
from ocpp_billing.mappings.store import load_family
from ocpp_billing.steve.capabilities import Capabilities, from_settings
from ocpp_billing.steve.errors import NotFound, ServerFault, SteveError, Unreachable
from ocpp_billing.steve.evidence import ManualStop, NextStart, predict_manual_stop
from ocpp_billing.steve.wire import fingerprint

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ocpp_billing.accounts.models import User
    from ocpp_billing.config import Config
    from ocpp_billing.mappings.store import Family
    from ocpp_billing.steve.client import SteveClient
    from ocpp_billing.steve.wire import Transaction

TAKEN_FROM = {
    "meter_value": "its last meter value",
    "next_start": "the next start on the connector",
    "none": "its own start, because StEvE has nothing else",
}
OTHERWISE = "Enter a reading, or exclude the session with a note."


class ClosingError(Exception):
    """A session cannot be closed in StEvE, or nobody knows whether it was; says what to do."""


# -- the list ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StuckSession:
    """A stuck session as people see it.

    Attributes:
        session_id: our number of it.
        steve_id: StEvE's transaction id.
        id_tag_last4: the end of the tag; "" for a short one.
        started_at: by the charger's clock.
        first_seen_at: when we read it first.
        vanished_at: since when StEvE does not show it any more.
        superseded_at: since when a restored StEvE shows another session under its number.
        mapping: whether a mapping pays for it, is switched off for that time, or there is none.
        customer: who would pay by that mapping: Lago's external id.
        subscription: the mapping's, if it names one.
        finding: the evidence; None while StEvE has not been asked yet.
        can: what a person can do about it, the best first.
        says: the same in a sentence.
    """

    session_id: int
    steve_id: int
    charge_box_id: str
    connector_id: int
    id_tag_last4: str
    started_at: datetime | None
    start_wh: int
    first_seen_at: datetime
    stuck_since: datetime
    vanished_at: datetime | None
    superseded_at: datetime | None
    mapping: Literal["active", "inactive", "none"]
    customer: str | None
    subscription: str | None
    finding: Finding | None
    can: tuple[Act, ...]
    says: str

    @property
    def can_close(self) -> bool:
        """Whether it can be closed in StEvE from here."""
        return Act.CLOSE in self.can

    @property
    def energy_wh(self) -> int | None:
        """What it delivered according to the evidence; None where nothing shows it."""
        if self.finding is None or self.finding.stop_wh is None:
            return None
        return self.finding.stop_wh - self.start_wh

    def to_json(self) -> dict[str, Any]:
        """As in ``ocpp-billing stuck --json``."""
        finding = self.finding
        return {
            "id": self.steve_id,
            "session_id": self.session_id,
            "charge_box_id": self.charge_box_id,
            "connector_id": self.connector_id,
            "id_tag_last4": self.id_tag_last4,
            "started_at": _iso(self.started_at),
            "start_wh": self.start_wh,
            "first_seen_at": _iso(self.first_seen_at),
            "stuck_since": _iso(self.stuck_since),
            "vanished_at": _iso(self.vanished_at),
            "superseded_at": _iso(self.superseded_at),
            "mapping": self.mapping,
            "customer_id": self.customer,
            "subscription_id": self.subscription,
            "evidence": None
            if finding is None
            else {
                "source": finding.source,
                "stop_wh": finding.stop_wh,
                "at": _iso(finding.at),
                "read_at": _iso(finding.read_at),
                "heard_at": _iso(finding.heard_at),
            },
            "energy_wh": self.energy_wh,
            "can_close": self.can_close,
            "can": [act.value for act in self.can],
            "says": self.says,
        }


def _iso(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat()


def list_stuck(config: Config) -> list[StuckSession]:
    """Every stuck session of the source, longest stuck first."""
    capabilities = known_capabilities(config)
    rows = ChargingSession.objects.filter(source=config.steve_source, state=SessionState.STUCK)
    sessions = list(rows.order_by("stuck_since", "steve_id"))
    can = acts_of(sessions, closable=capabilities is not None and capabilities.manual_stop)
    family = load_family({session.id_tag_id for session in sessions})
    return [_listed(session, family, can[session.pk]) for session in sessions]


def _listed(session: ChargingSession, family: Family, can: Sequence[Act]) -> StuckSession:
    finding = finding_of(session)
    assert session.stuck_since is not None  # noqa: S101 - state and instant are written together
    there = session.vanished_at is None and session.superseded_at is None
    has_evidence = finding is not None and finding.source != "none"
    payer: Mapped | Inactive | Unmapped = Unmapped()
    if session.started_at is not None:
        payer = resolve_mapping(session.id_tag_id, session.started_at, family.mappings, family.parents)
    if finding is None:
        says = "StEvE has not been asked for its meter values yet: see again after the next synchronization."
    elif not has_evidence:
        says = f"Nothing shows what was delivered. {OTHERWISE}"
    elif Act.CLOSE in can:
        says = f"Close it in StEvE: ocpp-billing stuck close {session.steve_id}. Or: {OTHERWISE}"
    elif there:
        says = f"Close it in StEvE's own pages; what StEvE writes is judged by the evidence. Or: {OTHERWISE}"
    else:
        says = f"StEvE no longer shows it. {OTHERWISE}"
    return StuckSession(
        session_id=session.pk,
        steve_id=session.steve_id,
        charge_box_id=session.charge_box_id,
        connector_id=session.connector_id,
        id_tag_last4=last4(session.id_tag_text),
        started_at=session.started_at,
        start_wh=session.start_wh,
        first_seen_at=session.first_seen_at,
        stuck_since=session.stuck_since,
        vanished_at=session.vanished_at,
        superseded_at=session.superseded_at,
        mapping="active"
        if isinstance(payer, Mapped)
        else "inactive"
        if isinstance(payer, Inactive)
        else "none",
        customer=None if isinstance(payer, Unmapped) else payer.mapping.customer,
        subscription=None if isinstance(payer, Unmapped) else payer.mapping.subscription,
        finding=finding,
        can=tuple(can),
        says=says,
    )


def finding_of(session: ChargingSession) -> Finding | None:
    """The evidence that is stored about a session."""
    return None if session.evidence is None else Finding.from_json(session.evidence)


def known_capabilities(config: Config) -> Capabilities | None:
    """What this StEvE's release can do, as far as that was found out; None before the first contact."""
    meant = from_settings(config)
    if meant is not None:
        return meant
    source = Source.objects.filter(name=config.steve_source).first()
    if source is None or not source.capabilities:
        return None
    try:
        return Capabilities.from_dict(source.capabilities)
    except ValueError:  # stored by another version of ours: the next run finds it out again
        return None


# -- the preview ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ClosePreview:
    """What would become of a session if it were closed in StEvE now.

    Attributes:
        steve_id: StEvE's transaction id.
        stop_wh: the stop register that StEvE would write.
        stopped_at: its time, which lies in the past.
        energy_wh: what the session would have delivered; negative is possible.
        source: what StEvE would take the stop from: ``meter_value``, ``next_start`` or ``none``.
        or_stop_wh: what it would write if it is 3.13 instead of 3.14, where that differs; else None.
        finding: our evidence.
        agrees: evidence and prediction say the same, so that the session would be billed.
        says: all that in words.
    """

    steve_id: int
    stop_wh: int
    stopped_at: datetime
    energy_wh: int
    source: str
    or_stop_wh: int | None
    finding: Finding
    agrees: bool
    says: str


def preview_close(config: Config, steve: SteveClient, session: ChargingSession) -> ClosePreview:
    """Foretell what closing a session in StEvE would make of it; asks StEvE, changes nothing.

    Raises:
        ClosingError: when the session cannot be closed.
        SteveError: when StEvE cannot be asked.
    """
    _, preview = _look(config, steve, session)
    if preview is None:
        raise ClosingError(f"Session {session.steve_id} has stopped meanwhile: there is nothing to close.")
    return preview


def _look(
    config: Config, steve: SteveClient, session: ChargingSession
) -> tuple[Transaction, ClosePreview | None]:
    """What StEvE shows of a session now, and, while it is open, what closing would make of it."""
    capabilities = known_capabilities(config)
    if capabilities is None:
        raise ClosingError("Nothing is known about this StEvE yet: synchronize first.")
    if not capabilities.manual_stop:
        raise ClosingError(
            f"StEvE {capabilities.release} cannot be told to close a session (3.12 and newer can): use "
            "StEvE's own pages. What it writes is judged by the evidence."
        )
    _refuse_unless_open(session)
    try:
        details = steve.transaction_details(session.steve_id)
    except NotFound:
        raise ClosingError(f"StEvE no longer shows session {session.steve_id}. {OTHERWISE}") from None
    if fingerprint(details.transaction) != bytes(session.fingerprint):
        raise ClosingError(
            f"StEvE shows another session under number {session.steve_id} than the ledger knows. "
            "Synchronize, and see what the dashboard says about StEvE."
        )
    if details.transaction.stopped_at is not None:
        return details.transaction, None
    unfinished = next(iter(read_unfinished(session.source_id, session.steve_id)), None)
    if unfinished is None:
        raise ClosingError(f"Session {session.steve_id} has changed meanwhile: look at it again.")
    finding = weigh(
        hear(unfinished, details.values),
        None,
        evidence_of_next_start(unfinished.start_wh, unfinished.following),
    )
    assert details.transaction.started_at is not None  # noqa: S101 - >= 3.8 never loses a start (facts 9)
    predictions = [
        predict_manual_stop(
            details.values,
            start_wh=session.start_wh,
            started_at=details.transaction.started_at,
            next_start=_next_start_by_clock(session),
            skips_falls=skips_falls,
        )
        for skips_falls in _may_skip_falls(config, capabilities)
    ]
    return details.transaction, _preview(session, finding, predictions)


def _refuse_unless_open(session: ChargingSession) -> None:
    if session.superseded_at is not None or session.vanished_at is not None:
        raise ClosingError(f"StEvE no longer shows session {session.steve_id}. {OTHERWISE}")
    if session.stopped_at is not None:
        raise ClosingError(f"Session {session.steve_id} has stopped: there is nothing to close.")
    if session.state != SessionState.STUCK:
        raise ClosingError(
            f"Session {session.steve_id} is not stuck: as far as is known it is being charged. See: "
            "ocpp-billing stuck"
        )


def _may_skip_falls(config: Config, capabilities: Capabilities) -> tuple[bool, ...]:
    """Whether this StEvE leaves out values after a fall of the register: 3.14 and newer do.

    The API does not tell 3.13 from 3.14, so both are possible unless STEVE_RELEASE says which.
    """
    if capabilities.release == "3.12":
        return (False,)
    if config.steve_release:
        return (int(config.steve_release.split(".")[1]) >= 14,)
    return (True, False)


def _preview(session: ChargingSession, finding: Finding, predictions: Sequence[ManualStop]) -> ClosePreview:
    stop, other = predictions[0], predictions[-1]
    energy_wh = stop.stop_wh - session.start_wh
    evidence_wh = finding.stop_wh
    agrees = (
        evidence_wh is not None and energy_wh > 0 and abs(evidence_wh - stop.stop_wh) <= EVIDENCE_TOLERANCE_WH
    )
    at = f"{stop.stopped_at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
    where = f"{say_kwh(stop.stop_wh)} kWh, {at} ({TAKEN_FROM[stop.source]})"
    says = [f"StEvE would end session {session.steve_id} at {where}: {say_kwh(energy_wh)} kWh."]
    if other.stop_wh != stop.stop_wh:
        says.append(f"If it is older than 3.14, it would write {say_kwh(other.stop_wh)} kWh instead.")
    if evidence_wh is None:
        says.append("Nothing shows what was delivered, so the session would be held.")
    else:
        evidence = f"{say_kwh(evidence_wh)} kWh ({TAKEN_FROM[finding.source]})"
        says.append(
            f"The evidence agrees: {evidence}."
            if agrees
            else f"The evidence says {evidence}, so the session would be held."
        )
    return ClosePreview(
        steve_id=session.steve_id,
        stop_wh=stop.stop_wh,
        stopped_at=stop.stopped_at,
        energy_wh=energy_wh,
        source=stop.source,
        or_stop_wh=None if other.stop_wh == stop.stop_wh else other.stop_wh,
        finding=finding,
        agrees=agrees,
        says=" ".join(says),
    )


def _next_start_by_clock(session: ChargingSession) -> NextStart | None:
    """The next session on the connector as StEvE finds it: by the chargers' clocks, right or wrong."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT started_at, start_wh FROM charging_session WHERE source_id = %s AND charge_box_id = %s"
            " AND connector_id = %s AND started_at > %s AND superseded_at IS NULL AND vanished_at IS NULL"
            " ORDER BY started_at LIMIT 1",
            [session.source_id, session.charge_box_id, session.connector_id, session.started_at],
        )
        row = cursor.fetchone()
    return None if row is None else NextStart(*row)


# -- the act -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Closed:
    """A session that is closed in StEvE: the stop that StEvE shows."""

    steve_id: int
    stop_wh: int
    stopped_at: datetime
    energy_wh: int


def close_in_steve(
    config: Config,
    steve: SteveClient,
    session: ChargingSession,
    *,
    expected_stop_wh: int,
    by: str,
    user: User | None = None,
) -> Closed:
    """Close a stuck session in StEvE's books after a person has seen what that makes of it.

    What StEvE shows afterwards decides whether it worked, also where the answer was lost; it is recorded
    at once and judged by the evidence at the next decision. Repeating it is safe.

    Args:
        config: the settings.
        steve: asks StEvE.
        session: as the person saw it.
        expected_stop_wh: the stop register that the person was shown (:attr:`ClosePreview.stop_wh`).
        by: who it is, in words.
        user: the account of that person, if there is one.

    Raises:
        ClosingError: when it has stopped or changed meanwhile, when there is no evidence, or when StEvE
            did not do it or cannot say whether it did.
        SteveError: when StEvE cannot be asked; nothing was changed then.
    """
    current = ChargingSession.objects.get(pk=session.pk)
    if current.revision != session.revision:
        raise ClosingError(f"Session {session.steve_id} has changed meanwhile: look at it again.")
    shown, preview = _look(config, steve, current)
    if preview is None:
        return _already_stopped(current, shown, expected_stop_wh)
    if preview.finding.source == "none":
        raise ClosingError(
            f"Nothing shows what session {session.steve_id} delivered; StEvE would write no energy. "
            + OTHERWISE
        )
    if preview.stop_wh != expected_stop_wh:
        raise ClosingError(
            f"Session {session.steve_id} has changed meanwhile: closing would now give "
            f"{say_kwh(preview.stop_wh)} kWh and not {say_kwh(expected_stop_wh)} kWh. Look at it again."
        )
    _write_down("session.close", current, preview, by, user)
    lost = _tell_steve(steve, current)
    return _see_what_became_of_it(steve, current, preview, lost, by=by, user=user)


def _write_down(
    action: str, session: ChargingSession, preview: ClosePreview, by: str, user: User | None
) -> None:
    """Before StEvE is told: an act that cannot be taken back leaves a trace even if we die in the middle."""
    with fenced_transaction("close", None):
        audit.record(
            action,
            user=user,
            actor=by,
            target=_target(session),
            before={"state": session.state, "evidence": session.evidence},
            after={"expected_stop_wh": preview.stop_wh, "expected_at": preview.stopped_at.isoformat()},
        )


def _tell_steve(steve: SteveClient, session: ChargingSession) -> SteveError | None:
    """Send the order; an answer that was lost is a value, for StEvE may have carried it out."""
    try:
        steve.stop_transaction(session.steve_id)
    except (Unreachable, ServerFault) as error:
        return error
    except SteveError as error:
        raise ClosingError(f"StEvE did not close session {session.steve_id}: {error}") from error
    return None


def _see_what_became_of_it(
    steve: SteveClient,
    session: ChargingSession,
    preview: ClosePreview,
    lost: SteveError | None,
    *,
    by: str,
    user: User | None,
) -> Closed:
    """Read the session again by its id and record it, with the evidence from before it was closed."""
    try:
        answer = steve.transactions(ids=[session.steve_id])
    except SteveError as error:
        raise ClosingError(
            f"Nobody knows whether session {session.steve_id} is closed: {error} The next synchronization "
            "shows it; closing it again does no harm."
        ) from error
    row = next((row for row in answer.rows if fingerprint(row) == bytes(session.fingerprint)), None)
    if row is None or row.stop_wh is None or row.stopped_at is None:
        raise ClosingError(
            f"StEvE did not close session {session.steve_id}"
            + (f": {lost}" if lost else ", although it said so. See StEvE's log.")
        )
    closed = _closed(session, row)
    with fenced_transaction("close", None) as cursor:
        ingest_transactions(cursor, session.source_id, [row], [], clock.now())
        store_evidence(cursor, session.pk, preview.finding)
        audit.record(
            "session.closed",
            user=user,
            actor=by,
            target=_target(session),
            after={"stop_wh": closed.stop_wh, "stopped_at": closed.stopped_at.isoformat()},
        )
    return closed


def _already_stopped(session: ChargingSession, row: Transaction, expected_stop_wh: int) -> Closed:
    """It stopped before we came: by ourselves, when an earlier attempt broke off, or by somebody else."""
    with fenced_transaction("close", None) as cursor:
        ingest_transactions(cursor, session.source_id, [row], [], clock.now())
    closed = _closed(session, row)
    if row.stop_actor == "manual" and row.stop_wh == expected_stop_wh:
        return closed
    whom = "an operator has closed it" if row.stop_actor == "manual" else "its charge box has sent the stop"
    raise ClosingError(
        f"Session {session.steve_id} has stopped meanwhile: {whom}, at "
        f"{say_kwh(closed.stop_wh)} kWh. That counts."
    )


def _closed(session: ChargingSession, row: Transaction) -> Closed:
    assert row.stop_wh is not None and row.stopped_at is not None  # noqa: S101, PT018 - both callers looked
    return Closed(session.steve_id, row.stop_wh, row.stopped_at, row.stop_wh - session.start_wh)


def _target(session: ChargingSession) -> str:
    return f"session:{session.source_id}:{session.steve_id}"
