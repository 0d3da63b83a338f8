"""The way to StEvE: one pooled HTTP client for every release from 3.6 to 3.14.

What the releases have in common decides how we ask: credentials of both kinds are sent at once (each
release reads only its own and never asks for them), redirects are not followed (one leads to a sign-in
page), dates carry no zone (the only form that every release takes), and a window is always complete.
"""

from __future__ import annotations

import base64
import re
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import TYPE_CHECKING, Final, Literal, Self
from urllib.parse import urlencode, urlsplit

import httpx2

from ocpp_billing.effects import effect
from ocpp_billing.http_date import date_of
from ocpp_billing.proxies import heeds_environment
from ocpp_billing.steve.errors import (
    Answer,
    InvalidSettings,
    NotJson,
    SteveError,
    Unreachable,
    WrongAddress,
    quote,
    refusal,
)
from ocpp_billing.steve.wire import (
    TransactionsAnswer,
    decode_details,
    decode_report,
    decode_tags,
    decode_transactions,
)
from ocpp_billing.tls import tls_context

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from ocpp_billing.steve.wire import (
        MalformedRow,
        ReportAnswer,
        TagsAnswer,
        Transaction,
        TransactionDetails,
    )

TransactionType = Literal["ALL", "ACTIVE", "STOPPED"]

API: Final = "/api/v1"
MOST_IDS_PER_CALL: Final = 300
# The servers under StEvE take 8,192 bytes of request line and headers together.
LONGEST_TARGET: Final = 6_500
# What StEvE's database cannot hold: asked for anything earlier, 3.7.1 finds nothing at all (recorded).
EARLIEST: Final = datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC)
SHORTEST_HIDDEN: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class SteveSettings:
    """Where StEvE is and how it knows us.

    Attributes:
        url: its address, with or without the context path (STEVE_API_URL).
        key: the secret: ``webapi.value`` up to 3.7, the API password from 3.8 on (STEVE_API_KEY).
        username: web user of >= 3.8 (STEVE_API_USERNAME); None sends the header alone.
        key_header: ``webapi.key`` of <= 3.7 (STEVE_API_KEY_HEADER).
        connect_timeout_s: to reach it.
        read_timeout_s: between two pieces of an answer; the first comes when its query is done.
        answer_timeout_s: for a whole answer.
        largest_answer_bytes: an answer that is longer, decompressed, is given up.

    Raises:
        InvalidSettings: when the address or the credentials cannot be sent as they are.
    """

    url: str
    key: str = field(repr=False)
    username: str | None = None
    key_header: str = "STEVE-API-KEY"
    connect_timeout_s: float = 5.0
    read_timeout_s: float = 120.0
    answer_timeout_s: float = 900.0
    largest_answer_bytes: int = 512 * 2**20

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
        except ValueError:
            usable = False
        if not usable or re.search(r"[\s\x00-\x1f]", self.url):
            raise InvalidSettings("STEVE_API_URL must look like https://steve.example.org/steve.")
        if parts.username is not None or parts.password is not None:
            raise InvalidSettings(
                "STEVE_API_URL must not contain credentials: STEVE_API_USERNAME and STEVE_API_KEY hold them."
            )
        if parts.query or parts.fragment:
            raise InvalidSettings("STEVE_API_URL must end with the path, without ? and #.")
        if not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", self.key_header):
            raise InvalidSettings("STEVE_API_KEY_HEADER must be a header name such as STEVE-API-KEY.")
        if not self.key or not self.key.isprintable() or self.key != self.key.strip():
            raise InvalidSettings(
                "STEVE_API_KEY must be set, without line breaks and without blanks around it."
            )
        if self.username is not None and (
            not self.username or not self.username.isprintable() or ":" in self.username
        ):
            raise InvalidSettings("STEVE_API_USERNAME must be one line without a colon, or not set at all.")

    def credentials(self) -> list[tuple[bytes, bytes]]:
        """The headers that let us in, for every release at once.

        Java reads header values as ISO 8859-1 and Basic credentials as UTF-8. A key that the header
        cannot carry goes along with question marks: >= 3.8 does not look at it.
        """
        headers = [(self.key_header.encode(), self.key.encode("latin-1", "replace"))]
        if self.username is not None:
            pair = base64.b64encode(f"{self.username}:{self.key}".encode())
            headers.append((b"Authorization", b"Basic " + pair))
        return headers

    def hide(self, text: str) -> str:
        """Take the secret out of somebody else's words."""
        if len(self.key) < SHORTEST_HIDDEN:
            return "(not shown)" if self.key in text else text
        return text.replace(self.key, "***")


def id_batches(ids: Sequence[int], *, id_lists: bool) -> Iterator[list[int]]:
    """Ids in portions that one call can carry: up to 300 where the release takes lists, else one by one.

    Up to 3.10 a list is a bad request, and a repeated parameter silently counts only once (recorded).
    """
    step = MOST_IDS_PER_CALL if id_lists else 1
    for start in range(0, len(ids), step):
        yield list(ids[start : start + step])


class SteveClient:
    """Asks StEvE. May be used by several threads; close it, or use it as a context manager.

    Attributes:
        settings: where and how.
        calls: HTTP calls made so far.
        busy_s: seconds that they took, failed ones included: StEvE's time, near enough.
        last_date: what time it was at StEvE, or at the proxy before it, by its last answer; None = it did not
            say.
    """

    def __init__(
        self,
        settings: SteveSettings,
        *,
        api_url: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make a client; nothing is sent yet.

        Args:
            settings: where and how.
            api_url: what :attr:`api_url` was found to be earlier, which saves the search.
            clock: monotonic seconds.
        """
        self.settings = settings
        self.calls = 0
        self.busy_s = 0.0
        self.last_date: datetime | None = None
        self._api_url = api_url
        self._clock = clock
        self._lock = threading.Lock()
        self._http = httpx2.Client(
            headers=[(b"User-Agent", b"ocpp-billing-sync"), (b"Accept-Encoding", b"gzip")],
            # Without a policy that refuses them, a session cookie of StEvE's web pages would come along.
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
            follow_redirects=False,
            verify=tls_context(),
            trust_env=heeds_environment(settings.url),
            timeout=httpx2.Timeout(settings.read_timeout_s, connect=settings.connect_timeout_s),
            limits=httpx2.Limits(max_connections=8, max_keepalive_connections=4, keepalive_expiry=20.0),
        )

    def __repr__(self) -> str:
        return f"SteveClient({self.settings!r}, calls={self.calls})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    # -- where it is ---------------------------------------------------------------------------

    @property
    def api_url(self) -> str | None:
        """The address below which StEvE's API answered; None while that is unknown."""
        return self._api_url

    def locate(self, known_as: str = "") -> str:
        """Find out below which address the API answers, and remember it.

        ``<url>/api/v1`` is tried, then ``<url>/steve/api/v1``, with a question that costs StEvE nothing
        (a transaction number that cannot exist).

        Args:
            known_as: where it answered before; while it is one of these two, nothing is asked. Should it
                answer there no more, the call in question ends as a wrong address.

        Raises:
            SteveError: when neither answers as StEvE does; the more telling of the two reasons.
        """
        if self._api_url is not None:
            return self._api_url
        given = self.settings.url.rstrip("/").removesuffix(API)
        bases = (given + API, given + "/steve" + API)
        if known_as in bases:
            self._api_url = known_as
            return known_as
        refusals: list[SteveError] = []
        for base in bases:
            answer = self._send("GET", base, "/transactions", {"transactionPk": "0"})
            try:
                decode_transactions(self._accepted(answer, feature=None).body)
            except SteveError as error:
                if error.said is not None or _is_sign_in_of(base, answer):
                    raise
                refusals.append(error)
            else:
                self._api_url = base
                return base
        # "Not here" says least; a redirect says where to look.
        telling = [error for error in refusals if error.status not in {403, 404, 405}]
        if telling:
            raise telling[0]
        raise WrongAddress(
            f"StEvE's API is neither at {given + API} nor at {given}/steve{API} (answers "
            f"{refusals[0].status} and {refusals[1].status}). Set STEVE_API_URL to StEvE's address, with its "
            "context path, such as https://steve.example.org/steve.",
            status=refusals[0].status,
        )

    def lets_anybody_in(self) -> bool:
        """Whether the API answers without credentials: one call, for nothing but that.

        Up to 3.7 it does where StEvE runs with its development profile, and anywhere where a proxy adds them.

        Raises:
            SteveError: when it cannot be asked.
        """
        target = {"transactionPk": "0"}
        answer = self._send("GET", self.locate(), "/transactions", target, with_credentials=False)
        if not 200 <= answer.status < 300:
            return False
        try:
            decode_transactions(answer.body)
        except SteveError:  # a page for people to sign in, say
            return False
        return True

    # -- what it can be asked ------------------------------------------------------------------

    def transactions(
        self,
        *,
        type: TransactionType | None = None,  # noqa: A002 - StEvE's own name
        ids: Sequence[int] | None = None,
        from_: datetime | None = None,
        to: datetime | None = None,
    ) -> TransactionsAnswer:
        """One call of ``GET /transactions``; all conditions hold at once.

        Without a condition StEvE returns its whole history. On 3.8 and 3.9 a window with
        ``type=None`` or ``"ALL"`` does so too: see ``Capabilities.window_type``.

        Args:
            type: None means all; ``STOPPED`` is known from 3.8 on.
            ids: at most one up to 3.10, at most 300 from 3.11 on; see :func:`id_batches`. An empty list
                finds nothing and asks nothing.
            from_: begin of the window, inclusive, with a time zone; rounded down to the second and not
                earlier than 1970-01-01T00:00:01Z. Start or stop time, by release.
            to: its end, inclusive; rounded up.

        Raises:
            SteveError: see :mod:`ocpp_billing.steve.errors`.
            ValueError: when a condition could be taken for none, or cannot be sent.
        """
        if ids is not None and not ids:
            return TransactionsAnswer([], [])
        params: dict[str, str] = {}
        if type is not None:
            params["type"] = type
        if from_ is not None or to is not None:
            params |= _window(from_, to)
        if ids is not None:
            if len(ids) > MOST_IDS_PER_CALL:
                raise ValueError(f"{len(ids)} ids in one call; {MOST_IDS_PER_CALL} are the limit")
            params["transactionPk"] = ",".join(map(str, ids))
        return decode_transactions(self.ask_transactions(params))

    def ask_transactions(self, params: Mapping[str, str]) -> bytes:
        """``GET /transactions`` undecoded, parameters as given; for probing what a release does."""
        return self._call("GET", "/transactions", params).body

    def transactions_by_id(self, ids: Sequence[int], *, id_lists: bool) -> TransactionsAnswer:
        """Transactions by number, in as many calls as the release needs; unknown numbers are just absent."""
        rows: list[Transaction] = []
        malformed: list[MalformedRow] = []
        for batch in id_batches(ids, id_lists=id_lists):
            answer = self.transactions(ids=batch)
            rows += answer.rows
            malformed += answer.malformed
        return TransactionsAnswer(rows, malformed)

    def transaction_details(self, transaction_id: int) -> TransactionDetails:
        """A transaction with its energy meter values (>= 3.12).

        Raises:
            NotFound: when there is no such transaction.
            FeatureMissing: up to 3.11.
            SteveError: all others.
        """
        return decode_details(self.ask_details(transaction_id, {}))

    def ask_details(self, transaction_id: int, params: Mapping[str, str]) -> bytes:
        """``GET /transactions/{id}`` undecoded, parameters as given; for probing what a release does."""
        return self._call(
            "GET",
            f"/transactions/{int(transaction_id)}",
            params,
            name="GET /transactions/{id}",
            feature="meter values of a transaction (3.12 and newer do)",
        ).body

    def tags(self) -> TagsAnswer:
        """All tags. StEvE reads its whole history for that: seconds at 300,000 transactions."""
        return decode_tags(self._call("GET", "/ocppTags", {}).body)

    def stop_transaction(self, transaction_id: int) -> None:
        """Close a transaction in StEvE's books (>= 3.12); the charger is told nothing.

        Safe to repeat: StEvE leaves a stopped transaction as it is. After :class:`Unreachable` it may or
        may not be closed: read it again.

        Raises:
            NotFound: when there is no such transaction.
            FeatureMissing: up to 3.11.
            SteveError: all others.
        """
        self._call(
            "PATCH",
            f"/transactions/{int(transaction_id)}/stop",
            {},
            name="PATCH /transactions/{id}/stop",
            feature="closing a transaction (3.12 and newer do)",
        )

    def report_csv(self, from_: datetime, to: datetime) -> ReportAnswer:
        """Transactions that stopped in ``[from_, to)``, with the times at which StEvE was told (>= 3.12).

        There is no index on stop times: StEvE reads its whole history for that.

        Raises:
            FeatureMissing: up to 3.11.
            SteveError: all others.
            ValueError: when ``to`` is not after ``from_``; StEvE would answer as if the report were missing.
        """
        window = _window(from_, to)
        answer = self._call(
            "GET",
            "/transactions/reports/csv",
            {"from": window["from"] + "Z", "to": window["to"] + "Z"},
            feature="the report of stopped transactions (3.12 and newer do)",
            accept=b"text/csv",
        )
        return decode_report(answer.body)

    # -- asking --------------------------------------------------------------------------------

    def _call(
        self,
        method: str,
        path: str,
        params: Mapping[str, str],
        *,
        name: str | None = None,
        feature: str | None = None,
        accept: bytes = b"application/json",
    ) -> Answer:
        """A call below the located address; returns only what StEvE answered with 2xx."""
        base = self.locate()
        answer = self._send(method, base, path, params, name=name, accept=accept)
        try:
            return self._accepted(answer, feature=feature)
        except WrongAddress:
            # It was there before: it moved to another context path, or another server answers now.
            self._api_url = None
            raise

    def _accepted(self, answer: Answer, *, feature: str | None) -> Answer:
        if 200 <= answer.status < 300:
            return answer
        raise refusal(
            answer,
            feature=feature,
            has_username=self.settings.username is not None,
            key_header=self.settings.key_header,
            hide=self.settings.hide,
        )

    def _send(
        self,
        method: str,
        base: str,
        path: str,
        params: Mapping[str, str],
        *,
        name: str | None = None,
        accept: bytes = b"application/json",
        with_credentials: bool = True,
    ) -> Answer:
        """One HTTP exchange, counted and timed."""
        query = "?" + urlencode(params, safe=":,") if params else ""
        if len(path + query) > LONGEST_TARGET:
            raise ValueError(f"a request of {len(path + query)} bytes is too long for StEvE")
        with self._lock:
            self.calls += 1
        started = self._clock()
        try:
            with effect(f"http steve {name or f'{method} {path}'}"):
                credentials = self.settings.credentials() if with_credentials else []
                return self._exchange(method, base, path + query, [(b"Accept", accept), *credentials])
        finally:
            took_s = self._clock() - started
            with self._lock:
                self.busy_s += took_s

    def _exchange(
        self, method: str, base: str, target: str, headers: Sequence[tuple[bytes, bytes]]
    ) -> Answer:
        try:
            with self._http.stream(method, base + target, headers=headers) as response:
                self.last_date = date_of(response.headers)
                return Answer(
                    url=base + target.partition("?")[0],
                    status=response.status_code,
                    content_type=response.headers.get("content-type", "").lower(),
                    location=response.headers.get("location", ""),
                    body=self._read(response),
                )
        except httpx2.DecodingError:
            raise NotJson(
                f"The answer of {base} is compressed in a way that cannot be undone. Look at the proxy in "
                "front of StEvE."
            ) from None
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            # Without its cause: the frames below hold the request with its credentials, and a log that
            # shows local variables would show them.
            raise Unreachable(self._why_unreachable(base, error)) from None

    def _read(self, response: httpx2.Response) -> bytes:
        deadline = self._clock() + self.settings.answer_timeout_s
        pieces: list[bytes] = []
        size = 0
        for piece in response.iter_bytes():
            pieces.append(piece)
            size += len(piece)
            if size > self.settings.largest_answer_bytes:
                raise NotJson(
                    f"StEvE's answer is longer than {self.settings.largest_answer_bytes // 2**20} MiB and "
                    "was given up. Check STEVE_API_URL; if it is right, this StEvE ignores the window asked "
                    "for: set STEVE_RELEASE to its release."
                )
            if self._clock() > deadline:
                raise Unreachable(
                    f"StEvE's answer was not complete after {self.settings.answer_timeout_s:g} s. Look at "
                    "the network between, and at StEvE's load."
                )
        return b"".join(pieces)

    def _why_unreachable(self, base: str, error: Exception) -> str:
        where = base.removesuffix(API)
        words = quote(self.settings.hide(str(error))) or type(error).__name__
        if isinstance(error, httpx2.ConnectTimeout):
            return (
                f"No connection to StEvE at {where} within {self.settings.connect_timeout_s:g} s. Check "
                "STEVE_API_URL, firewalls, and whether StEvE runs."
            )
        if isinstance(error, httpx2.TimeoutException):
            return (
                f"StEvE at {where} did not answer within {self.settings.read_timeout_s:g} s. If it is a big "
                "site or a busy hour, raise STEVE_READ_TIMEOUT_SECONDS; else look at StEvE and its database."
            )
        if isinstance(error, httpx2.ConnectError) and "SSL" in words.upper():
            return (
                f"The TLS connection to StEvE at {where} failed ({words}). Check the scheme and host in "
                "STEVE_API_URL; a certificate authority of your own is made known by SSL_CERT_FILE."
            )
        if isinstance(error, httpx2.ConnectError | httpx2.ProxyError | httpx2.InvalidURL):
            return (
                f"StEvE cannot be reached at {where} ({words}). Check STEVE_API_URL and whether StEvE runs; "
                "a proxy named in HTTP_PROXY or HTTPS_PROXY is used unless NO_PROXY lists StEvE's host."
            )
        return (
            f"The connection to StEvE at {where} broke off before the answer was complete ({words}). If this "
            "happens again, look at StEvE's log and at limits of a proxy in front of it."
        )


def _window(from_: datetime | None, to: datetime | None) -> dict[str, str]:
    """The parameters of a window, in the only form that every release reads: UTC without saying so.

    StEvE ignores ``from`` and ``to`` unless ``periodType`` says FROM_TO, and refuses one without the
    other or ``to`` not after ``from``.
    """
    if from_ is None or to is None:
        raise ValueError("a window needs both ends")
    if from_.tzinfo is None or to.tzinfo is None:
        raise ValueError("a window needs times with a time zone")
    begin = max(from_.astimezone(UTC), EARLIEST).replace(microsecond=0)
    end = to.astimezone(UTC)
    if end.microsecond:
        end = end.replace(microsecond=0) + timedelta(seconds=1)
    if end <= begin:
        raise ValueError("a window must end after it begins")
    return {"periodType": "FROM_TO", "from": _seconds(begin), "to": _seconds(end)}


def _seconds(moment: datetime) -> str:
    return moment.replace(tzinfo=None).isoformat(timespec="seconds")


def _is_sign_in_of(base: str, answer: Answer) -> bool:
    """Whether a redirect leads to the sign-in page of the very StEvE that was asked, not of another."""
    context = urlsplit(base).path.removesuffix(API)
    return answer.to_sign_in and urlsplit(answer.location).path.startswith(f"{context}/manager/")
