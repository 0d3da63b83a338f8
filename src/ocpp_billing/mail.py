"""E-mail: one server, set up by ``EMAIL_*``, for alerts and for letters to people. Nothing else sends any."""

from __future__ import annotations

import smtplib
import ssl
from dataclasses import dataclass
from email.message import EmailMessage
from email.utils import format_datetime
from typing import TYPE_CHECKING, Self

from ocpp_billing import clock
from ocpp_billing.effects import effect

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ocpp_billing.config import Config

TIMEOUT_S = 15.0


class MailError(Exception):
    """The server could not be reached or did not take the message for anybody; says what to look at."""


@dataclass(frozen=True, slots=True, repr=False)
class MailServer:
    """The server that takes our messages.

    Attributes:
        host: of the server.
        port: of the server.
        security: ``starttls``, ``tls`` or ``none``; a certificate is always checked.
        username: None = no sign-in.
        password: goes with it.
        sender: From.
    """

    host: str
    port: int
    security: str
    username: str | None
    password: str | None
    sender: str

    @classmethod
    def of(cls, config: Config) -> Self | None:
        """From the settings; None when host or sender is not set: then no e-mail is sent."""
        if config.email_host is None or config.email_from is None:
            return None
        return cls(
            config.email_host,
            config.email_port,
            config.email_security,
            config.email_username,
            config.email_password,
            config.email_from,
        )

    def send(self, to: Sequence[str], subject: str, text: str, *, message_id: str | None = None) -> None:
        """Hand one message for all recipients to the server.

        Args:
            to: addresses.
            subject: what it is about; the product's name is put before it.
            text: plain text.
            message_id: the same for every attempt, so that a receiver can tell a repetition.

        Raises:
            MailError: when the server did not take it.
        """
        message = EmailMessage()
        message["From"], message["To"] = self.sender, ", ".join(to)
        message["Subject"] = f"OCPP Billing Sync: {subject}"
        message["Auto-Submitted"] = "auto-generated"
        message["Date"] = format_datetime(clock.now())
        if message_id is not None:
            message["Message-ID"] = f"<{message_id}@ocpp-billing-sync.invalid>"
        message.set_content(text)
        try:
            with effect("smtp send"), self._connect() as server:
                if self.username is not None:
                    server.login(self.username, self.password or "")
                server.send_message(message)
        except smtplib.SMTPAuthenticationError as error:
            raise MailError(
                f"{self.host} refuses EMAIL_USERNAME and EMAIL_PASSWORD: {error.smtp_code}"
            ) from error
        except (OSError, smtplib.SMTPException) as error:
            raise MailError(f"{self.host}:{self.port} did not take the message: {error}") from error

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
