"""Letters to people by e-mail: invitations, links for a new password, notice of what happened to an account.

All of them are optional: without ``EMAIL_HOST`` and ``EMAIL_FROM`` an admin hands links over, and nobody is
notified.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING

from django.conf import settings
from django.db import connection
from django.utils import timezone
from django.utils.formats import date_format
from django.utils.translation import gettext as _

from ocpp_billing import clock
from ocpp_billing.log import get_logger
from ocpp_billing.mail import MailError, MailServer

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from ocpp_billing.accounts.models import Invitation, User

log = get_logger(__name__)

# So many letters are under way at once; a flood of requests must not become a flood of threads.
MOST_UNDER_WAY = 8
_places = threading.BoundedSemaphore(MOST_UNDER_WAY)
_under_way: set[threading.Thread] = set()
_not_sent: deque[str] = deque(maxlen=MOST_UNDER_WAY)


def mail_is_set_up() -> bool:
    """Whether letters can be sent at all."""
    return MailServer.of(settings.CONFIG) is not None


def send_letter(to: str, subject: str, *paragraphs: str) -> None:
    """Send a letter now.

    Raises:
        MailError: when e-mail is not set up, or the server did not take it.
    """
    server = MailServer.of(settings.CONFIG)
    if server is None:
        raise MailError("EMAIL_HOST and EMAIL_FROM are not set")
    server.send([to], subject, "\n\n".join([*paragraphs, f"{settings.CONFIG.auth_url}\n"]))


def soon(work: Callable[[], None]) -> None:
    """Do something after the answer, in a thread of its own: how long it takes tells nobody anything.

    Dropped, and logged, when too much is under way; whoever waits for a letter asks again. A process that is
    about to end calls :func:`finish`, or the letter is lost with it.
    """

    def run() -> None:
        try:
            work()
        except MailError as error:
            log.warning("a letter was not sent", action="letter.failed", error=str(error))
            _not_sent.append(f"A letter was not sent. {error}.")
        except Exception:  # the outermost frame of the thread
            log.exception("a letter was not written", action="letter.error")
        finally:
            connection.close()
            _places.release()
            _under_way.discard(threading.current_thread())

    if _places.acquire(blocking=False):
        thread = threading.Thread(target=run, name="letter", daemon=True)
        _under_way.add(thread)
        try:
            thread.start()
        except RuntimeError as error:  # the machine has no thread left
            log.warning("a letter was not sent", action="letter.failed", error=str(error))
            _under_way.discard(thread)
            _places.release()
    else:
        log.warning("too many letters are under way", action="letter.dropped")


def finish(within_s: float) -> list[str]:
    """Wait for the letters that are under way, before the process ends.

    Args:
        within_s: so long for all of them together.

    Returns:
        A sentence for each that was not sent lately, or will not be.
    """
    deadline = time.monotonic() + within_s
    for thread in list(_under_way):
        thread.join(max(deadline - time.monotonic(), 0))
    lost = len(_under_way)
    if lost:
        log.warning("letters were lost", action="letter.lost", letters=lost, within_s=within_s)
    why = f"A letter was not sent. The mail server did not take it within {within_s:g} s."
    sentences = [*_not_sent, *[why] * lost]
    _not_sent.clear()
    return sentences


def _until(at: datetime) -> str:
    return f"{date_format(timezone.localtime(at), 'j M Y, H:i')} ({settings.TIME_ZONE})"


def send_invitation(invitation: Invitation, link: str) -> None:
    """Bring the link to whoever is invited.

    Raises:
        MailError: when the server did not take it.
    """
    send_letter(
        invitation.email,
        _("You are invited"),
        _("Hello %(name)s,") % {"name": invitation.name},
        _("%(who)s invites you to OCPP Billing Sync as %(role)s. Choose a password here:")
        % {"who": invitation.invited_by, "role": invitation.get_role_display()},
        link,
        _("The link works once, until %(until)s. If you expected no invitation, do nothing.")
        % {"until": _until(invitation.expires_at)},
    )


def send_reset_link(user: User, link: str, expires_at: datetime) -> None:
    """Bring the link for a new password.

    Raises:
        MailError: when the server did not take it.
    """
    send_letter(
        user.email,
        _("A new password"),
        _("Hello %(name)s,") % {"name": user},
        _("Somebody, hopefully you, asked for a new password. Choose it here:"),
        link,
        _("The link works once, until %(until)s. If it was not you, do nothing: your password stays.")
        % {"until": _until(expires_at)},
    )


def notify(user: User, subject: str, says: str, *, address: str | None) -> None:
    """Tell a person what happened to their account, when e-mail is set up: it must not surprise them."""
    if not mail_is_set_up():
        return
    to, name, at = user.email, str(user), _until(clock.now())
    where = address or _("an unknown address")
    soon(
        lambda: send_letter(
            to,
            subject,
            _("Hello %(name)s,") % {"name": name},
            says,
            _("This was on %(at)s, from %(where)s.") % {"at": at, "where": where},
            _("If it was not you, tell an admin at once, and choose a new password."),
        )
    )
