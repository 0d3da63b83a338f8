"""What can go wrong between us and StEvE, and which refusal means what.

Every error is a :class:`SteveError` whose text says in plain words what happened and what the operator
can do, naming the setting. None of them ever contains the secret.

============================ ======================================================================
:class:`InvalidSettings`     an address, key or header name that cannot be sent
:class:`Unreachable`         no complete answer: connection, TLS, time, or it broke off
:class:`Unauthorised`        401: the credentials are of the right kind, but wrong
:class:`WrongCredentialKind` this release wants the other kind of credentials
:class:`ApiDisabled`         StEvE <= 3.7 without ``webapi.key`` and ``webapi.value``
:class:`WrongAddress`        something answers, but StEvE's API is not there
:class:`NotJson`             an answer that is not what StEvE's API says
:class:`FeatureMissing`      this release has no such call
:class:`NotFound`            the call exists, the transaction or tag does not
:class:`BadRequest`          StEvE does not accept what was asked
:class:`ServerFault`         5xx, or asked to slow down
============================ ======================================================================
"""
# ruff: noqa: N818 - the names say what happened; that they are errors is said by their common ancestor

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

LONGEST_QUOTE = 200
FULL_AUTHENTICATION = "Full authentication is required"


class SteveError(Exception):
    """Anything that keeps us from getting a usable answer of StEvE.

    Attributes:
        status: the HTTP status, where there was one.
        said: StEvE's own words, when the answer was one of its own error objects; None when something
            else (a proxy, a servlet container) spoke.
    """

    def __init__(self, message: str, *, status: int | None = None, said: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.said = said


class InvalidSettings(SteveError, ValueError):
    """The address, the key or another setting cannot be used as it is."""


class Unreachable(SteveError):
    """No complete answer came: no connection, no name, no trust (TLS), no patience, or it broke off."""


class Unauthorised(SteveError):
    """The credentials are of the kind that this release reads, but it does not accept them."""


class WrongCredentialKind(SteveError):
    """This release reads the other kind: a header up to 3.7, a user name and password from 3.8 on."""


class ApiDisabled(SteveError):
    """StEvE <= 3.7 whose ``webapi.key`` or ``webapi.value`` is empty answers 500 with a page of HTML."""


class WrongAddress(SteveError):
    """Something answers, but StEvE's API is not at this address."""


class NotJson(SteveError):
    """The answer is not what StEvE's API would say: HTML, garbage, another shape, or far too long."""


class FeatureMissing(SteveError):
    """This release has no such call: 404 or 405 up to 3.7, 403 from 3.9 on. Never a wrong password."""


class NotFound(SteveError):
    """The call exists, but no transaction or tag with that number."""


class BadRequest(SteveError):
    """StEvE understood the call but not its parameters; it never says which one."""


class ServerFault(SteveError):
    """StEvE, or what stands in front of it, has a problem of its own. Trying again later may help."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One complete HTTP answer.

    Attributes:
        url: what was asked, without the query (which may hold an id tag).
        status: HTTP status.
        content_type: lower-case, with its parameters; "" when absent.
        location: of a redirect; "" when absent.
        body: decompressed.
    """

    url: str
    status: int
    content_type: str
    location: str
    body: bytes

    @property
    def to_sign_in(self) -> bool:
        """Whether it sends us to StEvE's sign-in page: how >= 3.8 says "no credentials" (recorded)."""
        return self.status in {302, 303, 307} and self.location.split("?")[0].rstrip("/").endswith("/signin")

    def said(self) -> str | None:
        """The message of one of StEvE's own error objects, or None when something else answered.

        Its objects have ``timestamp``, a numeric ``status`` and ``message`` in every release; those of
        the servlet container have ``servlet`` or a textual ``status`` instead (recorded).
        """
        if not self.body.lstrip().startswith(b"{"):
            return None
        try:
            error = json.loads(self.body)
        except (ValueError, RecursionError):
            return None
        own = isinstance(error, dict) and "timestamp" in error and isinstance(error.get("status"), int)
        message = error.get("message") if own else None
        return message if isinstance(message, str) and message else None


def quote(text: str) -> str:
    """Somebody else's words, on one line and not too long."""
    line = " ".join(text.split())
    return line if len(line) <= LONGEST_QUOTE else line[: LONGEST_QUOTE - 1] + "…"


def refusal(
    answer: Answer, *, feature: str | None, has_username: bool, key_header: str, hide: Callable[[str], str]
) -> SteveError:
    """The error that an answer other than 2xx stands for.

    Args:
        answer: what came back.
        feature: what was asked for, in words, when not every release has it or it names one thing;
            None for the lists that every release has, where 403 and 404 mean a wrong address.
        has_username: whether Basic was sent beside the key header.
        key_header: name of the key header that was sent.
        hide: takes the secret out of somebody else's words.
    """
    status = answer.status
    own = answer.said()
    said = None if own is None else quote(hide(own))
    if answer.to_sign_in:
        return _credentials_not_seen(status, has_username=has_username)
    if status == 401:
        return _not_accepted(said, has_username=has_username, key_header=key_header)
    if 300 <= status < 400:
        return WrongAddress(
            f"{answer.url} redirects to {quote(hide(answer.location)) or 'nowhere'}. Set STEVE_API_URL to "
            "the address where StEvE itself answers (redirects are not followed with credentials).",
            status=status,
        )
    if status >= 500 or status == 429:
        return _server_fault(answer, said)
    if status in {403, 404, 405} and (said is None or feature is None or status == 404):
        return _not_here(answer, said, feature)
    words = f": {said}" if said else ""
    return BadRequest(
        f"StEvE did not accept the request to {answer.url} ({status}{words}). If it was upgraded or replaced "
        "lately, what is known about its release is out of date: remove or correct STEVE_RELEASE.",
        status=status,
        said=said,
    )


def _not_here(answer: Answer, said: str | None, feature: str | None) -> SteveError:
    if feature is None:
        return WrongAddress(
            f"{answer.url} answers {answer.status}: StEvE's API is not there. Set STEVE_API_URL to StEvE's "
            "address, with its context path, such as https://steve.example.org/steve.",
            status=answer.status,
        )
    if said is not None:
        return NotFound(f"StEvE does not know it: {said.rstrip('.')}.", status=answer.status, said=said)
    return FeatureMissing(
        f"This StEvE does not offer {feature} (it answered {answer.status}); a newer release may.",
        status=answer.status,
    )


def _credentials_not_seen(status: int, *, has_username: bool) -> WrongCredentialKind:
    if has_username:
        return WrongCredentialKind(
            "StEvE saw no user name and password although both were sent: probably a proxy in front of it "
            "removes the Authorization header. Let it through, or set STEVE_API_URL to StEvE itself.",
            status=status,
        )
    return WrongCredentialKind(
        "This StEvE (3.8 or newer) wants a user name beside the key. Set STEVE_API_USERNAME to one of its "
        "web users and STEVE_API_KEY to that user's API password (in a new StEvE: auth.user and "
        "webapi.value).",
        status=status,
    )


def _not_accepted(said: str | None, *, has_username: bool, key_header: str) -> SteveError:
    if said is not None and said.startswith(FULL_AUTHENTICATION):
        # The words of <= 3.7, for a missing and for a wrong key alike; it never looks at Basic (recorded).
        if has_username:
            return WrongCredentialKind(
                "This StEvE (3.7 or older) wants a key in a header, not a user name, and did not accept the "
                f"one in {key_header}. Set STEVE_API_KEY to its webapi.value and STEVE_API_KEY_HEADER to its "
                "webapi.key; STEVE_API_USERNAME means nothing to it.",
                status=401,
                said=said,
            )
        return Unauthorised(
            f"StEvE (3.7 or older) did not accept the key in the header {key_header}. Set STEVE_API_KEY to "
            "its webapi.value and STEVE_API_KEY_HEADER to its webapi.key.",
            status=401,
            said=said,
        )
    if said is None:
        return Unauthorised(
            "Something in front of StEvE refused the credentials (401, not in StEvE's words). Check "
            "STEVE_API_URL, STEVE_API_USERNAME and STEVE_API_KEY.",
            status=401,
        )
    return Unauthorised(
        f"StEvE did not accept the credentials ({said.rstrip('.')}). Check STEVE_API_USERNAME and "
        "STEVE_API_KEY: the key is the web user's API password, not the one for the web pages. StEvE notices "
        "a changed password after up to ten minutes.",
        status=401,
        said=said,
    )


def _server_fault(answer: Answer, said: str | None) -> SteveError:
    if answer.status == 500 and said is None and _says_disabled(answer.body):
        return ApiDisabled(
            "StEvE's web API is switched off. Set webapi.key and webapi.value in StEvE's main.properties, "
            "restart it, and give the same to STEVE_API_KEY_HEADER and STEVE_API_KEY.",
            status=500,
        )
    if answer.status == 429:
        return ServerFault(
            "Too many requests, says what stands in front of StEvE (429). Allow more there; the next cycle "
            "tries again.",
            status=429,
            said=said,
        )
    words = f": {said}" if said else " without an explanation"
    return ServerFault(
        f"StEvE answered {answer.status}{words}. Look into StEvE's log (or that of the proxy before it) and "
        "its database; the next cycle tries again.",
        status=answer.status,
        said=said,
    )


def _says_disabled(body: bytes) -> bool:
    """Whether a page says what StEvE <= 3.7 says when its API is off (issue 1278 of its tracker)."""
    return b"Web APIs are not exposed" in body or b"DisabledException" in body
