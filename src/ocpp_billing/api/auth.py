"""Who calls the API: a bearer token, or the session of somebody signed in. Nobody else, by default."""

import ipaddress
from dataclasses import dataclass
from typing import Any

from django.http import HttpRequest
from ninja.security import APIKeyCookie, HttpBearer
from ninja.utils import check_csrf

from ocpp_billing import clock
from ocpp_billing.accounts.audit import client_address
from ocpp_billing.accounts.models import ApiToken, Role, User
from ocpp_billing.accounts.tokens import authenticate_token
from ocpp_billing.api.errors import ApiError
from ocpp_billing.charging.mask import mask_id_tag
from ocpp_billing.remembered import remembered

# So many refused tokens of one address in so long; then their bearer is told to wait.
REFUSALS, REFUSAL_WINDOW_S = 20, 300
REFUSED = "The token is not valid: unknown, expired or revoked. Make a new one in the portal."
LONGEST_ACTOR = 254


@dataclass(frozen=True, slots=True)
class Caller:
    """Whoever calls, and what they may do.

    Attributes:
        user: the person.
        role: what this call may do; for a token at most what its person may.
        token: the token it came with; None = a session.
    """

    user: User
    role: Role
    token: ApiToken | None = None

    @property
    def name(self) -> str:
        """As the audit names them."""
        if self.token is None:
            return self.user.email
        return f"{self.user.email} (token {self.token.name})"[:LONGEST_ACTOR]

    @property
    def sees_tags(self) -> bool:
        """Whether they may see whole id tags, which are credentials."""
        return Role.OPERATOR.within(self.role)

    @property
    def may_ask_lago(self) -> bool:
        """Whether a question of theirs may become one to Lago, and its answer rows of ours."""
        return Role.OPERATOR.within(self.role)

    def tag(self, text: str) -> str:
        """An id tag as they may see it."""
        return text if self.sees_tags else mask_id_tag(text)


class ApiRequest(HttpRequest):
    """A request that was let in."""

    auth: Caller


def _require(caller: Caller, needs: Role) -> Caller:
    if needs.within(caller.role):
        return caller
    if caller.token is None:
        cure = "Ask an admin for that role."
    elif needs.within(Role(caller.user.role)):
        cure = "Use a token with that role."
    else:
        cure = "Its person does not have that role either: ask an admin."
    what = "You are" if caller.token is None else "This token is"
    raise ApiError(403, "forbidden", f"{what} {caller.role}, and this needs {needs}. {cure}")


class BearerToken(HttpBearer):
    """``Authorization: Bearer obs_…``."""

    def __init__(self, needs: Role) -> None:
        self.needs = needs
        super().__init__()

    def authenticate(self, request: HttpRequest, token: str) -> Caller:
        """The caller; a token that is not valid is never taken for a missing one."""
        return _require(token_caller(request, token), self.needs)


class SignedInSession(APIKeyCookie):
    """The portal's session cookie; what changes something needs the CSRF token, too."""

    def __init__(self, needs: Role) -> None:
        self.needs = needs
        super().__init__()

    def __call__(self, request: HttpRequest) -> Caller | None:
        """The caller, or None when nobody is signed in: that comes before CSRF."""
        user = request.user
        if not isinstance(user, User) or not user.is_active:
            return None
        if check_csrf(request) is not None:
            raise ApiError(
                403,
                "csrf",
                "The CSRF token is missing or wrong. Send it as X-CSRFToken, or call with a bearer token.",
            )
        return _require(Caller(user, Role(user.role)), self.needs)

    def authenticate(self, request: HttpRequest, key: str | None) -> Any | None:
        """Not used: the session is the middleware's."""
        raise NotImplementedError


def allow(role: Role) -> list[Any]:
    """The ``auth=`` of an operation that needs at least this role."""
    return [BearerToken(role), SignedInSession(role)]


def token_caller(request: HttpRequest, text: str) -> Caller:
    """Whose token it is.

    Raises:
        ApiError: 401 when it is not valid, 429 when the address has tried too many such. A valid token is
            never refused: people behind one address must not shut each other out, and 256 random bits
            cannot be guessed. The limit is there to keep guessing cheap for us.
    """
    token = authenticate_token(text)
    if token is not None:
        return Caller(token.user, token.effective_role, token)
    now_s = int(clock.now().timestamp())
    address = _network(client_address(request))
    key = f"api-refused:{address}:{now_s // REFUSAL_WINDOW_S}"
    refused = int(remembered.get(key, 0)) + 1
    if refused > REFUSALS:
        wait_s = REFUSAL_WINDOW_S - now_s % REFUSAL_WINDOW_S
        raise ApiError(
            429,
            "too_many_attempts",
            f"Too many tokens from this address were not valid. Wait {wait_s} s, then use a valid one.",
            Retry_After=str(wait_s),
        )
    remembered.set(key, refused, 2 * REFUSAL_WINDOW_S)
    raise ApiError(401, "unauthenticated", REFUSED, WWW_Authenticate='Bearer error="invalid_token"')


def _network(address: str | None) -> str:
    """An IPv4 address, or the /64 of an IPv6 one: one customer has all of that."""
    if address is None:
        return "unknown"
    parsed = ipaddress.ip_address(address)
    if parsed.version == 4:
        return str(parsed)
    return str(ipaddress.ip_network((parsed, 64), strict=False).network_address)


PROXY_HEADERS = ("X-Forwarded-For", "X-Forwarded-Host", "X-Real-IP", "Forwarded", "Via")


def is_local(request: HttpRequest) -> bool:
    """Whether the request comes from this machine itself and not through a proxy on it.

    A proxy that says nothing of itself cannot be told from a local caller, so the host that was asked
    for must be this machine, too.
    """
    if any(name in request.headers for name in PROXY_HEADERS):
        return False
    host = request.get_host().rsplit(":", 1)[0].strip("[]")
    return _is_loopback(request.META.get("REMOTE_ADDR", "")) and (host == "localhost" or _is_loopback(host))


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def may_monitor(request: HttpRequest) -> bool:
    """Whether figures of the process may be told: to this machine, and to whoever bears a valid token.

    Raises:
        ApiError: when a token was sent that is not valid.
    """
    kind, _, text = request.headers.get("Authorization", "").partition(" ")
    if kind.lower() == "bearer":
        token_caller(request, text)
        return True
    return is_local(request)
