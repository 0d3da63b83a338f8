"""The engine's only way to Lago: a thin, pooled, typed HTTP client.

Reading raises :mod:`ocpp_billing.lago.errors`; delivering returns an
:data:`~ocpp_billing.lago.delivery.Outcome`. One client serves several threads. Not lago-python-client: it
opens a connection per call, waits for ever on events and loses the status of an error.
"""

from __future__ import annotations

import re
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self, TypeVar
from urllib.parse import quote, urlsplit

import httpx2
import msgspec

from ocpp_billing import __version__
from ocpp_billing.effects import effect
from ocpp_billing.http_date import date_of
from ocpp_billing.lago import errors, wire
from ocpp_billing.lago.answers import UNREADABLE, error_of
from ocpp_billing.lago.delivery import Outcome, Unknown, classify
from ocpp_billing.proxies import heeds_environment
from ocpp_billing.tls import tls_context

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

DEFAULT_URL: Final = "https://api.getlago.com"
_API_PATH: Final = "/api/v1"
_KEY = re.compile(r"[!-~]+")
_LONGEST_ANSWER_BYTES: Final = 64 * 2**20
_MOST_CONNECTIONS: Final = 10
# Puma closes idle connections after 20 s; ours go first.
_KEEP_IDLE_S: Final = 15.0

_NOTHING_SENT = (
    httpx2.ConnectError,
    httpx2.ConnectTimeout,
    httpx2.PoolTimeout,
    httpx2.ProxyError,
    httpx2.UnsupportedProtocol,
)
_CONNECTION_LOST = (httpx2.ReadError, httpx2.WriteError, httpx2.CloseError, httpx2.RemoteProtocolError)

T = TypeVar("T")
Envelope = TypeVar("Envelope")


@dataclass(frozen=True, slots=True)
class LagoSettings:
    """Where Lago is and how to speak to it.

    Attributes:
        url: Lago's address: ``https://api.getlago.com``, a host of one's own, with or without a path
            prefix (``https://host/api``, as Lago's own compose file has it), also given with the
            ``/api/v1`` that the client would add.
        api_key: secret; in no repr, error or log.
        connect_timeout_s: to be connected.
        read_timeout_s: between two pieces of an answer.
        answer_timeout_s: for a whole answer, however lively it trickles.

    Raises:
        Misconfigured: when a value cannot be right; says which and what it should look like.
    """

    url: str = DEFAULT_URL
    api_key: str = field(default="", repr=False)
    connect_timeout_s: float = 5.0
    read_timeout_s: float = 30.0
    answer_timeout_s: float = 120.0

    def __post_init__(self) -> None:
        _ = self.base_url
        if not self.api_key:
            raise errors.Misconfigured("LAGO_API_KEY is not set. Copy it from Lago: Developers, API keys.")
        if not _KEY.fullmatch(self.api_key):
            raise errors.Misconfigured(
                "LAGO_API_KEY holds a blank, a line break or a character that no API key has. Copy it again."
            )
        if min(self.connect_timeout_s, self.read_timeout_s, self.answer_timeout_s) <= 0:
            raise errors.Misconfigured("The time-outs for Lago must be above 0 seconds.")

    @property
    def base_url(self) -> str:
        """The address without a trailing slash and without ``/api/v1``.

        Raises:
            Misconfigured: when ``LAGO_API_URL`` is no http(s) address, or holds a user, query or fragment.
        """
        text = self.url.strip()
        try:
            httpx2.URL(text)
            parts = urlsplit(text)
            _ = parts.port  # raises when it is no port
        except (httpx2.InvalidURL, ValueError):
            raise errors.Misconfigured(f"LAGO_API_URL is no address. {_URL_EXAMPLE}") from None
        if "@" in parts.netloc:  # not quoted: a password may be in it
            raise errors.Misconfigured(f"LAGO_API_URL must not hold a user or password. {_URL_EXAMPLE}")
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
            raise errors.Misconfigured(f"LAGO_API_URL is {text!r}. {_URL_EXAMPLE}")
        return text.rstrip("?#").rstrip("/").removesuffix(_API_PATH).rstrip("/")


_URL_EXAMPLE: Final = f"It should look like {DEFAULT_URL} or https://lago.example.com/api."


class _Answer(NamedTuple):
    status: int
    headers: httpx2.Headers
    body: bytes


class LagoClient:
    """A session with one Lago organisation. Close it, or use it as a context.

    Every HTTP call is one :func:`~ocpp_billing.effects.effect` and is counted in :attr:`calls`. GETs are
    repeated once when the connection is lost (a kept one may have gone stale); nothing else is repeated.
    """

    def __init__(self, settings: LagoSettings) -> None:
        self.settings = settings
        self._base = settings.base_url
        self._calls = 0
        self._count_lock = threading.Lock()
        self._date: datetime | None = None
        limits = httpx2.Limits(
            max_connections=_MOST_CONNECTIONS,
            max_keepalive_connections=_MOST_CONNECTIONS,
            keepalive_expiry=_KEEP_IDLE_S,
        )
        self._http = httpx2.Client(
            headers={
                "authorization": f"Bearer {settings.api_key}",
                "accept": "application/json",
                "user-agent": f"ocpp-billing-sync/{__version__}",
            },
            timeout=httpx2.Timeout(settings.read_timeout_s, connect=settings.connect_timeout_s),
            limits=limits,
            follow_redirects=False,
            verify=tls_context(),
            trust_env=heeds_environment(self._base),
        )

    @property
    def calls(self) -> int:
        """HTTP calls made so far, repeated ones and failed ones included."""
        return self._calls

    @property
    def last_date(self) -> datetime | None:
        """What time it was at Lago, or at the proxy before it, by its last answer; None = it did not say."""
        return self._date

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"LagoClient({self._base!r})"

    # -- who is there ------------------------------------------------------------------------------

    def health(self) -> wire.Health:
        """Lago's version, without using the key.

        ``/health`` lies beside ``/api``. Where a proxy gives the front-end that path (Lago's own compose
        file with ``LAGO_API_URL=https://host/api/v1``), ``/api/health`` is tried as well.

        Raises:
            LagoError: when neither answers as Lago does.
        """
        try:
            return self._get(_health, "/health", outside_api=True)
        except (errors.NotJson, errors.WrongAddress, errors.NotFound):
            return self._get(_health, "/api/health", outside_api=True)

    def organization(self) -> wire.Organization:
        """The organisation of the key: id, time zone, event store, grace period."""
        return self._get(_organization, "/organizations").organization

    # -- the contract: metrics, plans, customers, subscriptions --------------------------------------

    def metric(self, code: str) -> wire.BillableMetric | None:
        """A billable metric by its code, or None when there is none."""
        found = self._find(_metric, "/billable_metrics/{}", code)
        return found.billable_metric if found and found.billable_metric.code == code else None

    def create_metric(self, metric: wire.NewMetric) -> wire.BillableMetric:
        """Create a billable metric; :class:`~errors.Unprocessable` with ``value_already_exist`` if taken."""
        return self._create(_metric, "/billable_metrics", {"billable_metric": metric}).billable_metric

    def plans(self) -> Iterator[wire.Plan]:
        """All plans, page by page, with their charges."""
        pages = self._pages(_plans, "/plans", per_page=50)
        return _once(pages, lambda page: page.plans, lambda plan: plan.lago_id)

    def plan(self, code: str) -> wire.Plan | None:
        """A plan by its code with its charges, or None when there is none."""
        found = self._find(_plan, "/plans/{}", code)
        return found.plan if found and found.plan.code == code else None

    def create_plan(self, plan: wire.NewPlan) -> wire.Plan:
        """Create a plan with its charges."""
        return self._create(_plan, "/plans", {"plan": plan}).plan

    def customers(
        self, search: str | None = None, *, page: int = 1, per_page: int = 50
    ) -> wire.Page[wire.Customer]:
        """One page of customers, newest first, for a list to choose from.

        ``search`` is looked for in names, external id and e-mail by Lago. A Lago that knows no search
        ignores it and lists everybody.
        """
        params = [("page", str(page)), ("per_page", str(per_page))]
        if search:
            params.append(("search_term", search))
        answer = self._get(_customers, "/customers", params=params)
        return wire.Page(answer.customers, answer.meta)

    def customer(self, external_id: str) -> wire.Customer | None:
        """A customer by their external id, or None when there is none.

        Lago cuts a customer's id in a path at its first dot (up to v1.51), and would answer with somebody
        else. Such an id is looked up in the list, whose ``external_id`` filter older versions ignore;
        there it may cost all pages.
        """
        if not breaks_path(external_id):
            found = self._find(_customer, "/customers/{}", external_id)
            return found.customer if found and found.customer.external_id == external_id else None
        params = [("external_id", external_id), ("search_term", external_id)]
        pages = self._pages(_customers, "/customers", params=params, per_page=100)
        rows = (customer for page in pages for customer in page.customers)
        return next((customer for customer in rows if customer.external_id == external_id), None)

    def subscriptions(
        self,
        *,
        external_customer_id: str | None = None,
        statuses: Sequence[wire.SubscriptionStatus] = ("active", "pending", "terminated"),
    ) -> Iterator[wire.Subscription]:
        """Subscriptions of one customer or of all, in the statuses wanted, page by page."""
        params: list[tuple[str, str]] = [("status[]", status) for status in statuses]
        if external_customer_id is not None:
            params.append(("external_customer_id", external_customer_id))
        pages = self._pages(_subscriptions, "/subscriptions", params=params, per_page=100)
        rows = _once(pages, lambda page: page.subscriptions, lambda row: row.lago_id)
        return (
            row
            for row in rows
            if row.status in statuses and external_customer_id in {None, row.external_customer_id}
        )

    # -- what Lago counted ---------------------------------------------------------------------------

    def current_usage(self, customer: str, subscription: str, metric: str | None = None) -> wire.Usage:
        """What Lago counts in the open period of an active subscription, by external ids.

        With ``metric`` only that metric's lines. Lago caches usage: allow a settle delay after an event.

        Raises:
            NoActiveSubscription: the subscription is not active.
            MetricNotCharged: the plan has no charge on ``metric`` (v1.47 on; older Lago answers with no
                line of it).
            ServerFault: also what Lago answers to an unknown customer here.
            NotAddressable: the customer's id holds a dot.
        """
        params = [("external_subscription_id", subscription), ("apply_taxes", "false")]
        if metric is not None:
            params.append(("billable_metric_code", metric))
        answer = self._usage(_current_usage, "/customers/{}/current_usage", customer, params)
        usage = answer.customer_usage
        return usage if metric is None else _only(usage, metric)

    def past_usage(
        self, customer: str, subscription: str, metric: str | None = None, *, periods: int | None = None
    ) -> list[wire.Usage]:
        """What Lago invoiced, period by period, newest first.

        ``periods`` asks Lago for that many of the newest ones only.

        Raises:
            NotFound: Lago knows no such customer or subscription.
            NotAddressable: the customer's id holds a dot.
        """
        params = [("external_subscription_id", subscription)]
        if metric is not None:
            params.append(("billable_metric_code", metric))
        if periods is not None:
            params.append(("periods_count", str(periods)))
        route = "/customers/{}/past_usage"
        found: list[wire.Usage] = []
        page: int | None = 1
        while page is not None:
            answer = self._usage(_past_usage, route, customer, [*params, ("page", str(page))])
            found += answer.usage_periods
            page = _next(answer.meta, page)
        if metric is not None:
            found = [_only(usage, metric) for usage in found]
        return sorted(found, key=lambda usage: usage.from_datetime, reverse=True)

    def fees(
        self,
        *,
        external_subscription_id: str | None = None,
        event_transaction_id: str | None = None,
        metric: str | None = None,
    ) -> Iterator[wire.Fee]:
        """Fees, page by page. With ``event_transaction_id``: the proof of an event paid in advance."""
        named = {
            "external_subscription_id": external_subscription_id,
            "event_transaction_id": event_transaction_id,
            "billable_metric_code": metric,
        }
        params = [(name, value) for name, value in named.items() if value is not None]
        pages = self._pages(_fees, "/fees", params=params, per_page=100)
        rows = _once(pages, lambda page: page.fees, lambda fee: fee.lago_id or fee)
        return (fee for fee in rows if event_transaction_id in {None, fee.event_transaction_id})

    def invoice(self, lago_id: str) -> wire.Invoice | None:
        """An invoice by Lago's id; None where Lago does not show it: it is being made, or charged nothing."""
        found = self._find(_invoice, "/invoices/{}", lago_id)
        return found.invoice if found and found.invoice.lago_id == lago_id else None

    def event(self, transaction_id: str) -> wire.Event | None:
        """An event by its transaction id, or None when Lago (not merely a proxy) says there is none."""
        found = self._find(_event, "/events/{}", transaction_id)
        return found.event if found and found.event.transaction_id == transaction_id else None

    def events(
        self,
        *,
        external_subscription_id: str | None = None,
        metric: str | None = None,
        timestamp_from: datetime | None = None,
        timestamp_to: datetime | None = None,
        per_page: int = 500,
    ) -> Iterator[wire.Event]:
        """Events by their own time (both bounds inclusive), latest first, page by page.

        Pages are counted by offset: an event that arrives meanwhile shifts the later ones, so that a row
        may come twice; it is given once. Keep the window narrow and past where completeness matters.
        """
        named = {"external_subscription_id": external_subscription_id, "code": metric}
        params = [(name, value) for name, value in named.items() if value is not None]
        for name, at in (("timestamp_from", timestamp_from), ("timestamp_to", timestamp_to)):
            if at is not None:
                params.append((name, at.astimezone(UTC).isoformat(timespec="milliseconds")))
        pages = self._pages(_events, "/events", params=params, per_page=per_page)
        return _once(
            pages,
            lambda page: page.events,
            lambda event: (
                event.transaction_id,
                event.external_subscription_id,
                event.code,
                event.timestamp,
            ),
        )

    # -- delivery ------------------------------------------------------------------------------------

    def post_batch(self, events: Sequence[wire.UsageEvent]) -> Outcome:
        """Send up to 100 events; Lago takes all or refuses all.

        Raises:
            Unsendable: when an event or the batch breaks a rule; nothing was sent.
        """
        return self._deliver("/events/batch", wire.encode_batch(events), events)

    def _deliver(self, route: str, body: bytes, sent: Sequence[wire.UsageEvent]) -> Outcome:
        try:
            answer = self._exchange("POST", route, content=body)
        except httpx2.HTTPError as error:
            return Unknown(self._cause(error), nothing_sent=isinstance(error, _NOTHING_SENT))
        return classify(answer.status, answer.headers, answer.body, sent, now=datetime.now(UTC))

    # -- reading -------------------------------------------------------------------------------------

    def _pages(
        self,
        decoder: msgspec.json.Decoder[Envelope],
        route: str,
        *,
        params: Sequence[tuple[str, str]] = (),
        per_page: int,
    ) -> Iterator[Envelope]:
        page: int | None = 1
        while page is not None:
            place = [("page", str(page)), ("per_page", str(per_page))]
            answer: Any = self._get(decoder, route, params=[*params, *place])
            yield answer
            page = _next(answer.meta, page)

    def _usage(
        self,
        decoder: msgspec.json.Decoder[Envelope],
        route: str,
        customer: str,
        params: Sequence[tuple[str, str]],
    ) -> Envelope:
        try:
            return self._get(decoder, route, customer, params=params)
        except errors.WrongAddress as error:
            if not breaks_path(customer):
                raise
            raise errors.NotAddressable(
                f"Lago cannot be asked for the usage of customer {customer!r}: it takes no dot or slash in a "
                "customer's external id. Give the customer an id without one in Lago.",
                status=error.status,
                code=error.code,
                words=error.words,
            ) from error
        except errors.NotFound as error:
            if error.code != "charge_not_found":
                raise
            raise errors.MetricNotCharged(
                "The subscription's plan has no charge on this billable metric.",
                status=error.status,
                code=error.code,
                words=error.words,
            ) from error

    def _find(
        self,
        decoder: msgspec.json.Decoder[Envelope],
        route: str,
        key: str,
        *,
        params: Sequence[tuple[str, str]] = (),
    ) -> Envelope | None:
        if not key:
            return None  # the route without an id is the list
        try:
            return self._get(decoder, route, key, params=params)
        except errors.NotFound:
            return None

    def _get(
        self,
        decoder: msgspec.json.Decoder[Envelope],
        route: str,
        *keys: str,
        params: Sequence[tuple[str, str]] = (),
        outside_api: bool = False,
    ) -> Envelope:
        def exchange() -> _Answer:
            return self._exchange("GET", route, *keys, params=params, outside_api=outside_api)

        try:
            try:
                answer = exchange()
            except _CONNECTION_LOST:
                answer = exchange()
        except httpx2.HTTPError as error:
            raise self._unreachable(error) from error
        return self._decoded(decoder, answer)

    def _create(
        self, decoder: msgspec.json.Decoder[Envelope], route: str, body: Mapping[str, object]
    ) -> Envelope:
        try:
            answer = self._exchange("POST", route, content=_encoder.encode(body))
        except httpx2.HTTPError as error:
            raise self._unreachable(error) from error
        return self._decoded(decoder, answer)

    def _decoded(self, decoder: msgspec.json.Decoder[Envelope], answer: _Answer) -> Envelope:
        if not 200 <= answer.status < 300:
            raise error_of(answer.status, answer.headers, answer.body, self._base, datetime.now(UTC))
        try:
            return decoder.decode(answer.body)
        except msgspec.ValidationError as error:
            raise errors.Malformed(
                f"The answer of {self._base} is not what Lago's API promises ({error}). "
                "Check LAGO_API_URL and that Lago is v1.30 or later.",
                status=answer.status,
            ) from error
        except UNREADABLE as error:
            raise errors.NotJson(
                f"{self._base} answers, but not as Lago's API does (no JSON). Check LAGO_API_URL.",
                status=answer.status,
            ) from error

    # -- one call ------------------------------------------------------------------------------------

    def _exchange(
        self,
        method: str,
        route: str,
        *keys: str,
        params: Sequence[tuple[str, str]] = (),
        content: bytes | None = None,
        outside_api: bool = False,
    ) -> _Answer:
        """One HTTP call.

        Raises:
            httpx2.HTTPError: when no complete answer arrived.
        """
        path = route.format(*(_escaped(key) for key in keys))
        request = self._http.build_request(
            method,
            f"{self._base}{'' if outside_api else _API_PATH}{path}",
            params=list(params) or None,
            content=content,
            headers={"content-type": "application/json"} if content is not None else None,
        )
        if outside_api:
            del request.headers["authorization"]
        with self._count_lock:
            self._calls += 1
        with effect(f"http lago {method} {route.replace('{}', '{id}')}"):
            deadline = time.monotonic() + self.settings.answer_timeout_s
            response = self._http.send(request, stream=True)
            try:
                body = _read(response, deadline)
            finally:
                response.close()
        self._date = date_of(response.headers)
        return _Answer(response.status_code, response.headers, self._without_key(body))

    def _without_key(self, body: bytes) -> bytes:
        """An answer that repeats our headers (a debugging proxy's) must not carry the key into an error."""
        return body.replace(self.settings.api_key.encode(), b"***")

    def _unreachable(self, error: httpx2.HTTPError) -> errors.Unreachable:
        advice = "Check LAGO_API_URL, and that Lago is running and reachable from here."
        return errors.Unreachable(
            f"{self._cause(error)}. {advice}", nothing_sent=isinstance(error, _NOTHING_SENT)
        )

    def _cause(self, error: httpx2.HTTPError) -> str:
        """What went wrong on the way, for a person."""
        match error:
            case httpx2.ConnectTimeout():
                what = f"no connection within {self.settings.connect_timeout_s:g} s"
            case httpx2.PoolTimeout():
                what = f"all {_MOST_CONNECTIONS} connections are busy"
            case httpx2.TimeoutException():
                what = f"no answer within {self.settings.read_timeout_s:g} s"
            case httpx2.DecodingError():
                what = "the answer arrived damaged"
            case _ if isinstance(error, _CONNECTION_LOST):
                what = "the connection was lost before the answer was complete"
            case _:
                what = str(error)
        return f"Lago at {self._base}: {what}"


_encoder = msgspec.json.Encoder()
_health = msgspec.json.Decoder(wire.Health)
_organization = msgspec.json.Decoder(wire.OrganizationEnvelope)
_metric = msgspec.json.Decoder(wire.BillableMetricEnvelope)
_plan = msgspec.json.Decoder(wire.PlanEnvelope)
_plans = msgspec.json.Decoder(wire.PlanList)
_customer = msgspec.json.Decoder(wire.CustomerEnvelope)
_customers = msgspec.json.Decoder(wire.CustomerList)
_subscriptions = msgspec.json.Decoder(wire.SubscriptionList)
_current_usage = msgspec.json.Decoder(wire.CurrentUsageEnvelope)
_past_usage = msgspec.json.Decoder(wire.PastUsageList)
_invoice = msgspec.json.Decoder(wire.InvoiceEnvelope)
_fees = msgspec.json.Decoder(wire.FeeList)
# Numbers inside an event's properties are read as Decimal: they are somebody's quantities.
_event = msgspec.json.Decoder(wire.EventEnvelope, float_hook=Decimal)
_events = msgspec.json.Decoder(wire.EventList, float_hook=Decimal)


def _next(meta: wire.PageMeta, page: int) -> int | None:
    """The next page, or None at the end; also when Lago would send us back or in a circle."""
    return meta.next_page if meta.next_page is not None and meta.next_page > page else None


def _once(
    pages: Iterator[Envelope], rows: Callable[[Envelope], Sequence[T]], identity: Callable[[T], object]
) -> Iterator[T]:
    """The rows of all pages without those that the page before had too (see :meth:`LagoClient.events`)."""
    before: set[object] = set()
    for page in pages:
        this = set()
        for row in rows(page):
            key = identity(row)
            this.add(key)
            if key not in before:
                yield row
        before = this


def _only(usage: wire.Usage, metric_code: str) -> wire.Usage:
    """The usage with one metric's lines; Lago before v1.47 ignores the filter."""
    return msgspec.structs.replace(usage, charges_usage=usage.of_metric(metric_code))


def breaks_path(external_id: str) -> bool:
    """Whether Lago takes a customer's id for another one in an address (up to v1.51): a dot or a slash."""
    return "." in external_id or "/" in external_id


def _escaped(key: str) -> str:
    """An id as one segment of a path.

    The dot too: Rails takes what follows it for a format, but not when it is escaped, and a lone ``..``
    would change the path.
    """
    return quote(key, safe="").replace(".", "%2E")


class _AnswerRefused(httpx2.TransportError):
    """We stopped reading: too slow or too long. Not repeated, unlike a lost connection."""


def _read(response: httpx2.Response, deadline: float) -> bytes:
    """The whole body, decompressed.

    Raises:
        httpx2.HTTPError: also when it takes longer, or becomes longer, than any true answer of Lago.
    """
    pieces = []
    length = 0
    for piece in response.iter_bytes():
        pieces.append(piece)
        length += len(piece)
        if length > _LONGEST_ANSWER_BYTES:
            raise _AnswerRefused(f"the answer is longer than {_LONGEST_ANSWER_BYTES} bytes")
        if time.monotonic() > deadline:
            raise _AnswerRefused("the answer trickles in too slowly")
    return b"".join(pieces)
