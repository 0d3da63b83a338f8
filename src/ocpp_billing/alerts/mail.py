"""Alerts by e-mail."""

from __future__ import annotations

import smtplib
import ssl
from dataclasses import dataclass
from email.message import EmailMessage
from typing import TYPE_CHECKING, Self

from ocpp_billing.alerts.channels import ChannelError
from ocpp_billing.effects import effect

if TYPE_CHECKING:
    from ocpp_billing.alerts.channels import Notice
    from ocpp_billing.config import Config

TIMEOUT_S = 15.0


@dataclass(frozen=True, slots=True, repr=False)
class MailChannel:
    """A mail server and who gets alerts.

    Attributes:
        host: of the server.
        port: of the server.
        security: ``starttls``, ``tls`` or ``none``; a certificate is always checked.
        username: None = no sign-in.
        password: goes with it.
        sender: From.
        recipients: To.
    """

    host: str
    port: int
    security: str
    username: str | None
    password: str | None
    sender: str
    recipients: tuple[str, ...]

    @classmethod
    def of(cls, config: Config) -> Self:
        """From the settings, which must be complete."""
        assert config.email_host and config.email_from and config.alert_email_to  # noqa: S101, PT018
        return cls(
            config.email_host,
            config.email_port,
            config.email_security,
            config.email_username,
            config.email_password,
            config.email_from,
            tuple(config.alert_email_to.split(",")),
        )

    def send(self, notice: Notice) -> None:
        """Hand one message for all recipients to the server.

        Raises:
            ChannelError: when the server could not be reached or did not take it for anybody.
        """
        message = EmailMessage()
        message["From"], message["To"] = self.sender, ", ".join(self.recipients)
        message["Subject"] = f"OCPP Billing Sync: {notice.title}"
        message["Auto-Submitted"] = "auto-generated"
        message["Message-ID"] = f"<alert-{notice.message_id}-{notice.source}@ocpp-billing-sync.invalid>"
        message.set_content(f"{notice.text}\n\n{notice.url}\n")
        try:
            with effect("smtp send"), self._connect() as server:
                if self.username is not None:
                    server.login(self.username, self.password or "")
                server.send_message(message)
        except smtplib.SMTPAuthenticationError as error:
            raise ChannelError(
                f"{self.host} refuses EMAIL_USERNAME and EMAIL_PASSWORD: {error.smtp_code}"
            ) from error
        except (OSError, smtplib.SMTPException) as error:
            raise ChannelError(f"{self.host}:{self.port} did not take the message: {error}") from error

    def _connect(self) -> smtplib.SMTP:
        if self.security == "tls":
            return smtplib.SMTP_SSL(
                self.host, self.port, timeout=TIMEOUT_S, context=ssl.create_default_context()
            )
        server = smtplib.SMTP(self.host, self.port, timeout=TIMEOUT_S)
        if self.security == "starttls":
            try:
                server.starttls(context=ssl.create_default_context())
            except BaseException:
                server.close()
                raise
        return server
