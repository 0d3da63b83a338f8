"""What the API takes and gives, in the words of the field. Energies are whole Wh, instants are UTC."""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from django.conf import settings
from ninja import Schema
from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, WithJsonSchema

from ocpp_billing.accounts.audit import NOTE_LENGTH
from ocpp_billing.accounts.models import Role
from ocpp_billing.charging.models import SessionState
from ocpp_billing.config import parse_instant

HIGHEST_ID = 2**63 - 1


def _no_nul(text: str) -> str:
    if "\0" in text:  # PostgreSQL has no such text
        raise ValueError("must not hold the character NUL")
    return text


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be blank")
    return text


def _given_instant(value: Any) -> datetime:
    if isinstance(value, datetime):
        value = value.isoformat()
    if not isinstance(value, str):
        raise ValueError("must be a date such as 2026-12-01, or a date-time")  # noqa: TRY004 - pydantic's
    try:
        return parse_instant(value, settings.CONFIG.timezone)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"must be {error}") from None


Id = Annotated[int, Field(ge=1, le=HIGHEST_ID)]
Text = Annotated[str, Field(max_length=255), AfterValidator(_no_nul)]
Name = Annotated[str, Field(min_length=1, max_length=255, pattern=r"\S"), AfterValidator(_no_nul)]
Note = Annotated[str, Field(max_length=NOTE_LENGTH), AfterValidator(_no_nul)]
Reasoned = Annotated[
    str,
    Field(min_length=1, max_length=NOTE_LENGTH, pattern=r"\S"),
    AfterValidator(_no_nul),
    AfterValidator(_not_blank),
]
# An instant that somebody gives: a date is 00:00 in SYNC_TIMEZONE, as on the command line.
GivenInstant = Annotated[
    datetime,
    BeforeValidator(_given_instant),
    WithJsonSchema(
        {
            "type": "string",
            "anyOf": [{"format": "date-time"}, {"format": "date"}],
            "description": "A date (00:00 in SYNC_TIMEZONE) or a date-time.",
            "examples": ["2026-12-01", "2026-12-01T06:00:00+01:00"],
        }
    ),
]
# An instant that we tell: always UTC.
Instant = Annotated[
    datetime,
    PlainSerializer(lambda value: value.astimezone(UTC).isoformat().replace("+00:00", "Z"), return_type=str),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]


# A void event was never attempted and counts nowhere, so nobody is told of it.
EventStateName = Literal["queued", "accepted", "confirmed", "rejected", "held", "excluded"]


class Amount(Schema):
    """A number of sessions and their energy."""

    sessions: int
    energy_wh: int


# -- synchronization ---------------------------------------------------------------------------------


class Run(Schema):
    """A synchronization run."""

    id: int
    status: Literal["requested", "running", "completed", "partial", "failed", "interrupted"]
    trigger: str
    requested_by: str
    requested_at: Instant
    started_at: Instant | None
    ended_at: Instant | None
    duration_s: float | None
    delivery: Literal["live", "shadow", "paused"] | None
    counts: dict[str, int]
    errors: list[dict[str, Any]]


class Step(Schema):
    """One step of a run."""

    name: str
    started_at: Instant
    ended_at: Instant | None
    counts: dict[str, int]
    error: str | None


class RunDetail(Run):
    """A run with its steps; its log has pages of its own."""

    steps: list[Step]


class RunPage(Schema):
    """Runs, newest first."""

    items: list[Run]
    next: str | None


class LogLine(Schema):
    """What a run said."""

    at: Instant
    level: str
    action: str
    message: str


class LogPage(Schema):
    """The log of a run, oldest first. While the run goes on, ``next`` leads to what is said later."""

    items: list[LogLine]
    next: str | None


class Triggered(Schema):
    """What will become of a trigger, honestly."""

    run: Run
    outcome: Literal["starts_now", "queued_behind", "no_worker"]
    message: str


class Delivery(Schema):
    """Whether usage events are sent to Lago."""

    mode: Literal["live", "shadow", "paused"]
    live_from: Instant | None
    paused_at: Instant | None
    paused_by: str | None
    pause_reason: str | None


class SyncStatus(Schema):
    """How fresh everything is, and whether a worker is alive."""

    worker_alive: bool
    worker_seen_at: Instant | None
    next_run_at: Instant | None
    last_completed_at: Instant | None
    running: Run | None
    requested: Run | None
    last: Run | None
    delivery: Delivery


# -- mappings and what they are made of --------------------------------------------------------------


class MappingIn(Schema):
    """A mapping to create. ``valid_from`` is always given: there is no default for who pays since when."""

    id_tag: Name
    customer_id: Name
    subscription_id: Text | None = None
    valid_from: GivenInstant
    valid_to: GivenInstant | None = None
    active: bool = True
    note: Note = ""


class MappingChange(Schema):
    """What to change: the note, or from an instant on who pays."""

    customer_id: Name | None = None
    subscription_id: Text | None = None
    at: GivenInstant | None = Field(None, description="From when; required with customer_id.")
    note: Note | None = None


class MappingEnd(Schema):
    """When a mapping ends: sessions that start then or later are not paid for by it."""

    at: GivenInstant


class MappingSwitch(Schema):
    """Switch off or on."""

    active: bool
    at: GivenInstant | None = Field(None, description="From when; default: now.")
    bill_gap: bool | None = Field(
        None, description="Required when switching on: are sessions of the time it was off billed?"
    )


class Mapping(Schema):
    """An interval in which a tag belonged to a customer.

    Viewers see the tag's last four characters, and no note, which may name one.
    """

    id: int
    id_tag: str
    customer_id: str
    subscription_id: str | None
    valid_from: Instant
    valid_to: Instant | None
    active: bool
    verified: bool
    note: str
    created_at: Instant
    updated_at: Instant


class MappingPage(Schema):
    """Mappings, newest first."""

    items: list[Mapping]
    next: str | None


class PreviewGroup(Schema):
    """Sessions that stand alike now."""

    state: str
    reason: str | None
    sessions: int
    energy_wh: int


class MappingPreview(Schema):
    """What a mapping would release, if it were saved."""

    released: Amount
    groups: list[PreviewGroup]
    overlaps: bool


class Tag(Schema):
    """A tag that StEvE or a session showed."""

    id_tag: str
    parent: str | None
    note: str | None
    blocked: bool | None
    vanished_at: Instant | None
    identity_conflict: str | None
    mapped: Literal["active", "inactive", "none"]
    customer_id: str | None
    waiting: Amount


class TagPage(Schema):
    """Tags, in the order in which they became known."""

    items: list[Tag]
    next: str | None


class Customer(Schema):
    """A customer of Lago, as last read."""

    id: str
    name: str
    email: str | None
    currency: str | None
    timezone: str | None
    read_at: Instant


class CustomerList(Schema):
    """Customers that match; ``unreachable`` says that Lago could not be asked: these are remembered."""

    items: list[Customer]
    unreachable: bool
    message: str | None


class CustomersRead(Schema):
    """A complete read of Lago's customers."""

    customers: int


class Subscription(Schema):
    """A subscription of Lago, as last read."""

    id: str
    name: str | None
    customer_id: str
    plan_code: str
    status: str
    started_at: Instant | None
    terminated_at: Instant | None
    period_from: Instant | None
    period_to: Instant | None
    read_at: Instant


class SubscriptionList(Schema):
    """Subscriptions of a customer; ``unreachable`` as for customers."""

    items: list[Subscription]
    unreachable: bool
    message: str | None


# -- the ledger --------------------------------------------------------------------------------------


class Totals(Schema):
    """All rows of the filter together."""

    rows: int
    energy_wh: int


class Session(Schema):
    """A charging session; viewers see the tag's last four characters.

    ``vanished_at``: since when StEvE does not show it any more; ``superseded_at``: since when a restored
    StEvE shows another session under its number. It is kept either way, and what was billed stays billed.
    """

    id: int
    steve_id: int
    charge_box_id: str
    connector_id: int
    id_tag: str
    started_at: Instant | None
    stopped_at: Instant | None
    start_wh: int
    stop_wh: int | None
    energy_wh: int | None
    state: SessionState
    reason: str | None
    says: str | None
    customer_id: str | None
    subscription_id: str | None
    first_seen_at: Instant
    changed_at: Instant
    revision: int
    flags: list[Any]
    evidence: dict[str, Any] | None
    vanished_at: Instant | None
    superseded_at: Instant | None


class SessionPage(Schema):
    """Sessions, newest first. ``totals`` come with the first page."""

    items: list[Session]
    next: str | None
    totals: Totals | None


class DecisionOut(Schema):
    """What was decided about a revision of a session, by whom and why."""

    id: int
    revision: int
    outcome: Literal["bill", "hold", "exclude"]
    reason: str | None
    says: str
    energy_wh: int
    mapping_id: int | None
    customer_id: str | None
    subscription_id: str | None
    decided_at: Instant
    decided_by: str
    note: str


class RulingOut(Schema):
    """What a person ordered about a session."""

    kind: Literal["accept", "exclude", "assign", "credit"]
    revision: int
    reason: str | None
    customer_id: str | None
    subscription_id: str | None
    note: str
    at: Instant
    by: str
    revoked_at: Instant | None


class BillingEvent(Schema):
    """A usage event: what we owe or gave to Lago."""

    id: int
    transaction_id: str
    session_id: int
    steve_id: int
    kind: str
    state: EventStateName
    reason: str | None
    customer_id: str
    subscription_id: str
    metric_code: str
    energy_wh: int
    timestamp: Instant
    charge_box_id: str
    connector_id: int
    id_tag: str
    started_at: Instant | None
    stopped_at: Instant | None
    lago_event_id: str | None
    attempts: int
    created_at: Instant
    accepted_at: Instant | None
    confirmed_at: Instant | None


class BillingEventDetail(BillingEvent):
    """A usage event with the exact payload and Lago's last words."""

    payload: dict[str, Any]
    answer: dict[str, Any] | None


class BillingEventPage(Schema):
    """Usage events, newest first. ``totals`` come with the first page."""

    items: list[BillingEvent]
    next: str | None
    totals: Totals | None


class SessionDetail(Session):
    """A session with StEvE's row as read, and everything that was decided and sent."""

    raw: dict[str, Any]
    decisions: list[DecisionOut]
    rulings: list[RulingOut]
    events: list[BillingEventDetail]


class AcceptIn(Schema):
    """Bill a held session although a rule holds it."""

    note: Note = ""


class ExcludeIn(Schema):
    """Never bill what is left of a session; the note says why."""

    note: Reasoned


class AssignIn(Schema):
    """Let a customer pay for one session, whatever the mapping says."""

    customer_id: Name
    subscription_id: Text | None = None
    note: Note = ""


class ReadingIn(Schema):
    """What the meter showed at the end; the note says where that comes from."""

    stop_wh: int = Field(ge=0, le=2**31 - 1)
    stopped_at: GivenInstant
    note: Reasoned


class BalanceOut(Schema):
    """Every watt-hour accounted for; ``unexplained`` must be 0."""

    read: Amount
    states: dict[str, Amount]
    reasons: dict[str, Amount]
    negative: Amount
    malformed: int
    unexplained: Amount
    proved_at: Instant | None


class BreakdownLine(Schema):
    """One line of a breakdown; ``key`` is null for what has none."""

    key: str | None
    sessions: int
    energy_wh: int
    states: dict[str, Amount]


class Breakdown(Schema):
    """The balance by day, reason, tag, customer or subscription."""

    by: str
    lines: list[BreakdownLine]


# -- people ------------------------------------------------------------------------------------------


class UserOut(Schema):
    """A person."""

    id: int
    email: str
    name: str
    role: Role
    active: bool
    created_at: Instant
    last_login: Instant | None


class UserList(Schema):
    """People, by e-mail."""

    items: list[UserOut]


class UserIn(Schema):
    """A person to add."""

    email: Annotated[str, Field(max_length=254), AfterValidator(_no_nul)]
    name: Annotated[str, Field(min_length=1, max_length=150, pattern=r"\S"), AfterValidator(_no_nul)]
    role: Role
    password: Annotated[str, Field(max_length=1000), AfterValidator(_no_nul)] | None = Field(
        None, description="To sign in with at first; without one the person cannot sign in yet."
    )


class UserChange(Schema):
    """What to change; what is left out stays."""

    name: (
        Annotated[str, Field(min_length=1, max_length=150, pattern=r"\S"), AfterValidator(_no_nul)] | None
    ) = None
    role: Role | None = None
    active: bool | None = None


class TokenIn(Schema):
    """A token to make for oneself."""

    name: Annotated[str, Field(min_length=1, max_length=100, pattern=r"\S"), AfterValidator(_no_nul)]
    role: Role
    expires_at: GivenInstant | None = Field(
        None, description="From when it is refused; null = never; left out = in 90 days."
    )


class TokenOut(Schema):
    """A token, without itself."""

    id: int
    user_id: int
    user_email: str
    name: str
    role: Role
    hint: str
    created_at: Instant
    expires_at: Instant | None
    last_used_at: Instant | None
    revoked_at: Instant | None


class TokenMade(TokenOut):
    """A new token with itself: it is told this once and never again."""

    token: str


class TokenList(Schema):
    """Tokens, newest first."""

    items: list[TokenOut]


class AuditOut(Schema):
    """An act of a person."""

    id: int
    at: Instant
    actor: str
    user_id: int | None
    action: str
    target: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    note: str
    address: str | None


class AuditPage(Schema):
    """Acts, newest first."""

    items: list[AuditOut]
    next: str | None
