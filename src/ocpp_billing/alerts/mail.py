"""Alerts by e-mail."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ocpp_billing.alerts.channels import ChannelError
from ocpp_billing.mail import MailError

if TYPE_CHECKING:
    from ocpp_billing.alerts.channels import Notice
    from ocpp_billing.mail import MailServer


@dataclass(frozen=True, slots=True, repr=False)
class MailChannel:
    """The mail server, and who gets alerts."""

    server: MailServer
    recipients: tuple[str, ...]

    def send(self, notice: Notice) -> None:
        """Hand one message for all recipients to the server.

        Raises:
            ChannelError: when the server could not be reached or did not take it for anybody.
        """
        try:
            self.server.send(
                self.recipients,
                notice.title,
                f"{notice.text}\n\n{notice.url}\n",
                message_id=f"alert-{notice.message_id}-{notice.source}",
            )
        except MailError as error:
            raise ChannelError(str(error)) from error
