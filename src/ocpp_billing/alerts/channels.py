"""The ways an alert takes: the log always; e-mail and a webhook where they are configured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from ocpp_billing.alerts.conditions import TITLES
from ocpp_billing.log import get_logger
from ocpp_billing.mail import MailServer

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    from ocpp_billing.config import Config

log = get_logger(__name__)


class ChannelError(Exception):
    """A word could not be delivered.

    Attributes:
        final: trying again is of no use.
    """

    def __init__(self, message: str, *, final: bool = False) -> None:
        super().__init__(message)
        self.final = final


@dataclass(frozen=True, slots=True)
class Notice:
    """One word about one alert.

    Attributes:
        message_id: the same for every attempt, so that a receiver can tell a repetition.
        source: name of the StEvE.
        condition: its code.
        says: what happened.
        do: what to do about it.
        opened_at: when it began.
        resolved_at: when it was over; None = it goes on.
        url: of the portal.
        grown: it was told before, and there is much more of it now.
    """

    message_id: int
    source: str
    condition: str
    says: str
    do: str
    opened_at: datetime
    resolved_at: datetime | None
    url: str
    grown: bool = False

    @property
    def title(self) -> str:
        """What it is about, for a subject line."""
        title = TITLES.get(self.condition, self.condition)
        if self.resolved_at is not None:
            return f"Over: {title}"
        return f"More: {title}" if self.grown else title

    @property
    def text(self) -> str:
        """What it says, for a person."""
        if self.resolved_at is None:
            return f"{self.says}\n\nWhat to do: {self.do}"
        lasted = _in_words(self.resolved_at - self.opened_at)
        return f"This is over, after {lasted}. It was: {self.says}"


def _in_words(lasted: timedelta) -> str:
    """In the two units that matter: ``45 s``, ``5 min``, ``2 h 5 min``, ``3 d 4 h``."""
    seconds = max(0, int(lasted.total_seconds()))
    if seconds < 60:
        return f"{seconds} s"
    days, hours, minutes = seconds // 86_400, seconds // 3_600 % 24, seconds // 60 % 60
    units = [(days, "d"), (hours, "h"), (0 if days else minutes, "min")]
    return " ".join(f"{number} {unit}" for number, unit in units if number)


class Channel(Protocol):
    """A way that alerts take."""

    def send(self, notice: Notice) -> None:
        """Deliver one word.

        Raises:
            ChannelError: when it was not, or not certainly, delivered.
        """
        ...


class LogChannel:
    """The log of the process that noticed."""

    def send(self, notice: Notice) -> None:
        """Write it as an error when it begins, as information when it is over."""
        write = log.error if notice.resolved_at is None else log.info
        write(
            notice.title,
            action=_action(notice),
            condition=notice.condition,
            says=notice.says,
            do=notice.do,
        )


def _action(notice: Notice) -> str:
    if notice.resolved_at is not None:
        return "alert.resolved"
    return "alert.grown" if notice.grown else "alert.opened"


def channels_of(config: Config) -> dict[str, Channel]:
    """The channels that are configured completely, by name."""
    from ocpp_billing.alerts.mail import MailChannel  # noqa: PLC0415 - they know what a channel is from here
    from ocpp_billing.alerts.webhook import WebhookChannel  # noqa: PLC0415

    channels: dict[str, Channel] = {"log": LogChannel()}
    server = MailServer.of(config)
    if config.alert_email_to and server is not None:
        channels["email"] = MailChannel(server, tuple(config.alert_email_to.split(",")))
    if config.alert_webhook_url and config.alert_webhook_secret:
        channels["webhook"] = WebhookChannel(config.alert_webhook_url, config.alert_webhook_secret)
    return channels


def incomplete(config: Config) -> list[str]:
    """What is missing for the channels that somebody began to configure: one sentence each."""
    missing = []
    if config.alert_email_to:
        missing += config.missing("EMAIL_HOST", "EMAIL_FROM")
    if config.alert_webhook_url:
        missing += config.missing("ALERT_WEBHOOK_SECRET")
    return [f"Alerts are not sent there: {sentence}" for sentence in missing]
