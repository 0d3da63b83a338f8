"""What the StEvE at hand can do, found out once with a few harmless questions.

No release says its number by the API, so we look at how it answers. Each question touches at most one
or two transactions and each refusal is provoked at most once (StEvE logs a stack trace for every one):

1. ``transactionPk=<id>,<id>``: refused up to 3.10, a list from 3.11 on. Further for >= 3.11:
   ``GET /transactions/<id>?energyValuesOnly=probe``: no such route on 3.11; 3.12 has the route and
   ignores the parameter; from 3.13 on the parameter is a boolean and ``probe`` is refused.
2. For <= 3.10: ``type=STOPPED`` with one id: refused up to 3.7.
3. For 3.8 to 3.10: the id in a window of 1990, ``type`` left out. 3.8 and 3.9 ignore windows for all
   types at once and return the transaction; 3.10 does not. The key ``userId`` tells 3.9 from 3.8.

Only the last step needs a transaction that exists; without one it is left open (``complete`` is False)
and what is unknown is treated as the worst of 3.8 to 3.10.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from ocpp_billing.steve.errors import BadRequest, FeatureMissing, InvalidSettings, NotFound
from ocpp_billing.steve.wire import decode_transactions

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ocpp_billing.config import Config
    from ocpp_billing.steve.client import SteveClient
    from ocpp_billing.steve.wire import Transaction, TransactionsAnswer

Auth = Literal["api_key", "basic", "none"]
NOWHEN: Final = {
    "periodType": "FROM_TO",
    "from": "1990-01-01T00:00:00",
    "to": "1990-01-02T00:00:00",
}
NOWHEN_BEGIN: Final = datetime(1990, 1, 1, tzinfo=UTC)
NOWHEN_END: Final = datetime(1990, 1, 2, tzinfo=UTC)


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What a release does; the releases are compared in docs/explanation/steve-and-lago.md.

    Attributes:
        release: ``3.6/3.7``, ``3.8``, ``3.9``, ``3.10``, ``3.8-3.10``, ``3.11``, ``3.12`` or
            ``3.13+``.
        id_lists: several ids in one call (>= 3.11).
        stopped_filter: ``type=STOPPED`` exists (>= 3.8).
        window_basis: which time a window of :attr:`window_type` compares: ``stop`` on 3.8 and 3.9, else
            ``start``; None while unknown.
        details: meter values of one transaction (>= 3.12).
        manual_stop: closing a transaction in the books (>= 3.12).
        csv_report: the report of stopped transactions (>= 3.12).
        auth: which credentials it reads: the key header, Basic, or none at all (an open API, or a proxy
            that signs in for us).
        complete: nothing is unknown.
    """

    release: str
    id_lists: bool
    stopped_filter: bool
    window_basis: Literal["start", "stop"] | None
    details: bool
    manual_stop: bool
    csv_report: bool
    auth: Auth
    complete: bool = True

    @property
    def window_type(self) -> Literal["STOPPED"] | None:
        """The ``type`` to use with a window so that it is one: never all types where STOPPED exists."""
        return "STOPPED" if self.stopped_filter else None

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return dict(msgspec.to_builtins(self))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Capabilities:
        """Back from :meth:`to_dict`.

        Raises:
            ValueError: when that is not what was stored; probe again.
        """
        return msgspec.convert(dict(values), cls)


def override(release: str, *, has_username: bool = True) -> Capabilities:
    """What a release does, by its number instead of by probing (STEVE_RELEASE).

    Args:
        release: such as ``3.9``, ``3.9.0`` or ``3.14.1``.
        has_username: whether STEVE_API_USERNAME is set.

    Raises:
        InvalidSettings: when it is not a release with an API.
    """
    match = re.fullmatch(r"3\.(\d{1,2})(\.\d{1,2})?", release.strip())
    minor = int(match[1]) if match else 0
    if minor < 6:
        raise InvalidSettings(
            "STEVE_RELEASE must be a release of StEvE from 3.6 on, such as 3.9 or 3.14.1 (older ones have no "
            "API), or be left out."
        )
    auth: Auth = "api_key" if minor <= 7 else "basic" if has_username else "none"
    if minor <= 7:
        return _up_to_3_7(auth)
    if minor <= 9:
        return _3_8_to_3_10(f"3.{minor}", auth, ignores_window=True)
    if minor == 10:
        return _3_8_to_3_10("3.10", auth, ignores_window=False)
    return _from_3_11(f"3.{minor}" if minor <= 12 else "3.13+", auth, details=minor >= 12)


def from_settings(config: Config) -> Capabilities | None:
    """What the release of STEVE_RELEASE does; None where that is not set: it has to be found out.

    Raises:
        InvalidSettings: when it is not a release with an API.
    """
    if not config.steve_release:
        return None
    return override(config.steve_release, has_username=config.steve_api_username is not None)


def probe(client: SteveClient, known_id: int | None) -> Capabilities:
    """Find out what this StEvE does, in two to four calls (and those of locating it, if that is to be done).

    Args:
        client: asks.
        known_id: a transaction that exists there; None when none is known yet.

    Raises:
        SteveError: when it cannot be asked; a refusal that is not in StEvE's own words proves nothing.
    """
    has_username = client.settings.username is not None
    auth: Auth = "basic" if has_username else "none"
    first, second = (known_id, known_id) if known_id is not None else (1, 2)
    try:
        body = client.ask_transactions({"transactionPk": f"{first},{second}"})
    except BadRequest as error:
        if error.said is None:
            raise
    else:
        known_id = known_id if known_id is not None else _any_id(decode_transactions(body))
        return _probe_details(client, known_id, auth)

    by_id = {"transactionPk": str(first)}
    try:
        stopped = client.ask_transactions({"type": "STOPPED", **by_id})
    except BadRequest as error:
        if error.said is None:
            raise
        return _up_to_3_7("api_key")
    return _probe_window(client, by_id, stopped, auth)


def _probe_details(client: SteveClient, known_id: int | None, auth: Auth) -> Capabilities:
    try:
        client.ask_details(known_id or 0, {"energyValuesOnly": "probe"})
    except FeatureMissing:
        return _from_3_11("3.11", auth, details=False)
    except BadRequest as error:
        if error.said is None:
            raise
        return _from_3_11("3.13+", auth, details=True)
    except NotFound:
        # The route is there and looked for the transaction, so the parameter was not refused.
        pass
    return _from_3_11("3.12", auth, details=True)


def _probe_window(client: SteveClient, by_id: dict[str, str], stopped: bytes, auth: Auth) -> Capabilities:
    """Which of 3.8, 3.9 and 3.10 it is."""
    body = client.ask_transactions({**by_id, **NOWHEN})
    outside = decode_transactions(body)
    if outside.malformed or any(_is_in_nowhen(row) for row in outside.rows):
        # Either it really began in 1990, or its start cannot be read: it proves nothing.
        return _3_8_to_3_10("3.8-3.10", auth, ignores_window=None)
    if outside.rows:
        return _3_8_to_3_10("3.9" if _has_user_id(body) else "3.8", auth, ignores_window=True)
    # Nothing came back: because the window counts, or because there is no such transaction?
    if decode_transactions(stopped).rows or decode_transactions(_ask_for(client, by_id)).rows:
        return _3_8_to_3_10("3.10", auth, ignores_window=False)
    return _3_8_to_3_10("3.8-3.10", auth, ignores_window=None)


def _ask_for(client: SteveClient, by_id: dict[str, str]) -> bytes:
    return client.ask_transactions(by_id)


def _any_id(answer: TransactionsAnswer) -> int | None:
    return next((row.steve_id for row in answer.rows), None)


def _is_in_nowhen(row: Transaction) -> bool:
    return row.started_at is not None and NOWHEN_BEGIN <= row.started_at <= NOWHEN_END


def _has_user_id(body: bytes) -> bool:
    """Whether the rows have the key ``userId``, whatever its value (>= 3.9)."""
    return any("userId" in row for row in msgspec.json.decode(body, type=list[dict[str, Any]]))


def _up_to_3_7(auth: Auth) -> Capabilities:
    return Capabilities(
        release="3.6/3.7",
        id_lists=False,
        stopped_filter=False,
        window_basis="start",
        details=False,
        manual_stop=False,
        csv_report=False,
        auth=auth,
    )


def _3_8_to_3_10(release: str, auth: Auth, *, ignores_window: bool | None) -> Capabilities:
    return Capabilities(
        release=release,
        id_lists=False,
        stopped_filter=True,
        window_basis=None if ignores_window is None else "stop" if ignores_window else "start",
        details=False,
        manual_stop=False,
        csv_report=False,
        auth=auth,
        complete=ignores_window is not None,
    )


def _from_3_11(release: str, auth: Auth, *, details: bool) -> Capabilities:
    """From 3.12 on details, manual stop and report came together, so one of them proves all three."""
    return Capabilities(
        release=release,
        id_lists=True,
        stopped_filter=True,
        window_basis="start",
        details=details,
        manual_stop=details,
        csv_report=details,
        auth=auth,
    )
