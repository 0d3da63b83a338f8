"""For machines that watch: can this process serve, and the figures for Prometheus.

Whether it serves is told to everybody; the details, and all figures, only to this machine itself and to
whoever bears a token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.contrib.auth.decorators import login_not_required
from django.db import DatabaseError
from django.http import HttpResponse, JsonResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe
from prometheus_client import CONTENT_TYPE_LATEST

from ocpp_billing import clock
from ocpp_billing.api.auth import may_monitor
from ocpp_billing.api.errors import ApiError, error_response
from ocpp_billing.billing.balance import counted_balance, last_proof
from ocpp_billing.database import DISK_IS_FULL, MAKE_ROOM, free_bytes, has_room
from ocpp_billing.log import get_logger
from ocpp_billing.metrics import read_metrics
from ocpp_billing.schema import find_schema_error
from ocpp_billing.sync.liveness import worker_alive

if TYPE_CHECKING:
    from django.http import HttpRequest

log = get_logger(__name__)

CLOSED = (
    "This is told to the machine itself and to whoever bears a token: 'Authorization: Bearer obs_…'. "
    "Make one in the portal, as viewer."
)


@login_not_required
@never_cache
@require_safe
def readyz(request: HttpRequest) -> HttpResponse:
    """200 when the database answers, has the schema of this version and can be written, else 503."""
    try:
        problem = None
        if (error := find_schema_error()) is not None:
            problem = str(error)
        elif not has_room():
            problem = f"{DISK_IS_FULL} {MAKE_ROOM}"
        ready = problem is None
        details = _details() if ready and may_monitor(request) else {}
    except DatabaseError as error:
        log.warning("database away", action="readyz.database", error=type(error).__name__)
        ready, problem, details = False, "The database does not answer.", {}
    except ApiError as error:
        return error.response()
    body = {"status": "ready" if ready else "not ready", **({} if ready else {"problem": problem}), **details}
    return JsonResponse(body, status=200 if ready else 503)


@login_not_required
@never_cache
@require_safe
def metrics(request: HttpRequest) -> HttpResponse:
    """The figures, for Prometheus."""
    try:
        if not may_monitor(request):
            return error_response(401, "unauthenticated", CLOSED, WWW_Authenticate="Bearer")
        return HttpResponse(read_metrics(settings.CONFIG), content_type=CONTENT_TYPE_LATEST)
    except ApiError as error:
        return error.response()
    except DatabaseError as error:
        log.warning("database away", action="metrics.database", error=type(error).__name__)
        return error_response(503, "database_unreachable", "The database does not answer.")


def _details() -> dict[str, Any]:
    source = settings.CONFIG.steve_source
    worker = worker_alive(source, clock.now())
    proof = last_proof(source)
    return {
        # None where it cannot be known: the disk of another machine.
        "disk_free_bytes": free_bytes(),
        "worker": {
            "alive": worker.alive,
            "seen_at": worker.seen_at,
            "next_run_at": worker.next_run_at,
            "last_completed_at": worker.last_completed,
        },
        # The same as /api/balance.
        "balance": {
            **counted_balance(source).to_json(),
            "proved_at": None if proof is None else proof.proved_at,
        },
    }
