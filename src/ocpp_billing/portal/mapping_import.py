"""Mappings from a file: first what each line would do, then exactly that."""

from __future__ import annotations

import hashlib
import io
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.contrib import messages
from django.core import signing
from django.db import transaction
from django.shortcuts import redirect, render
from django.utils.translation import gettext as _
from django.utils.translation import ngettext
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods

from ocpp_billing.accounts.models import Role
from ocpp_billing.mappings.csv import COLUMNS, ImportReport, import_mappings
from ocpp_billing.mappings.store import MappingError
from ocpp_billing.portal.access import needs, person
from ocpp_billing.portal.format import count
from ocpp_billing.portal.sync_now import ask_for_run

if TYPE_CHECKING:
    from django.http import HttpRequest, HttpResponse

    from ocpp_billing.accounts.models import User

LARGEST_BYTES = 1_000_000
# Every line is looked up and tried in one transaction, twice: more would keep the page, and others, waiting.
MOST_LINES = 5_000
LINES_SHOWN = 500
# A preview of yesterday is no preview.
GOOD_FOR_S = 3600
_SALT = "ocpp_billing.mapping-import"


def _read(text: str, user: User, *, dry_run: bool) -> ImportReport:
    return import_mappings(
        io.StringIO(text, newline=""),
        source=settings.CONFIG.steve_source,
        zone=settings.CONFIG.timezone,
        by=user.email,
        user=user,
        dry_run=dry_run,
    )


def _digest(report: ImportReport) -> str:
    """Two reports that say the same of every line have the same."""
    return hashlib.sha256(repr(report.lines).encode()).hexdigest()


@needs(Role.OPERATOR)
@never_cache
@require_http_methods(["GET", "POST"])
def mapping_import(request: HttpRequest) -> HttpResponse:
    """The form, the report of a dry run, and the import of what was reported."""
    context: dict[str, Any] = {"columns": COLUMNS}
    user = person(request)
    if request.method == "POST":
        try:
            if "previewed" in request.POST:
                return _apply(request, user, request.POST["previewed"])
            return _preview(request, _uploaded(request), user)
        except MappingError as error:
            context |= {"error": str(error), "text": request.POST.get("text", "")}
    return render(request, "portal/mapping_import.html", context)


def _uploaded(request: HttpRequest) -> str:
    file = request.FILES.get("file")
    pasted = request.POST.get("text", "")
    if file is None and not pasted.strip():
        raise MappingError(_("Choose a file, or paste its lines."))
    size = len(pasted) if file is None else file.size
    if size is None or size > LARGEST_BYTES:
        raise MappingError(
            _("The file is larger than %(n)s kB: split it, or use ocpp-billing mappings import.")
            % {"n": count(LARGEST_BYTES // 1000)}
        )
    try:
        text = pasted if file is None else str(file.read().decode("utf-8"))
    except UnicodeDecodeError:
        raise MappingError(_("The file is not UTF-8 text. Save it as “CSV UTF-8”.")) from None
    if text.count("\n") > MOST_LINES:
        raise MappingError(
            _("The file has more than %(n)s lines: split it, or use ocpp-billing mappings import.")
            % {"n": count(MOST_LINES)}
        )
    return text


def _preview(request: HttpRequest, text: str, user: User, *, changed: bool = False) -> HttpResponse:
    report = _read(text, user, dry_run=True)
    sealed = signing.dumps({"text": text, "digest": _digest(report)}, salt=_SALT, compress=True)
    return render(
        request,
        "portal/mapping_import_report.html",
        {
            "report": report,
            # What is wrong first: it is what a person has to act on.
            "lines": sorted(report.lines, key=lambda line: (line.outcome != "error", line.number))[
                :LINES_SHOWN
            ],
            "all": len(report.lines),
            "errors": len(report.errors),
            "previewed": sealed,
            "changed": changed,
        },
    )


def _apply(request: HttpRequest, user: User, previewed: str) -> HttpResponse:
    """Import what was previewed; when it would do anything else by now, nothing, and show that."""
    try:
        sealed = signing.loads(previewed, salt=_SALT, max_age=GOOD_FOR_S)
    except signing.BadSignature:
        raise MappingError(
            _("The preview is older than an hour, or damaged: choose the file again.")
        ) from None
    with transaction.atomic():
        report = _read(sealed["text"], user, dry_run=False)
        same = _digest(report) == sealed["digest"]
        if not same:
            transaction.set_rollback(True)
    if not same:
        return _preview(request, sealed["text"], user, changed=True)
    says = ngettext("%(n)s mapping is made", "%(n)s mappings are made", report.created)
    rest = _("%(unchanged)s unchanged, %(errors)s with errors left out.")
    named = {
        "n": count(report.created),
        "unchanged": count(report.unchanged),
        "errors": count(len(report.errors)),
    }
    messages.success(request, f"{says}, {rest}" % named + f" {ask_for_run(request)}")
    return redirect("portal:mappings")
