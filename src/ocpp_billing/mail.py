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
_SECURITY = "EMAIL_SECURITY (starttls is usual at port 587, tls at 465)"
_MAY_WANT_SIGN_IN = ", and whether it wants EMAIL_USERNAME and EMAIL_PASSWORD"


class MailError(Exception):
    """The server could not be reached or did not take the message for anybody.

    Says which settings to look at; without a full stop.
    """


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
        except UnicodeError:  # it bears what cannot be sent, such as the password
            raise MailError(
                "EMAIL_HOST, EMAIL_USERNAME or EMAIL_PASSWORD holds a character that cannot be sent"
            ) from None
        except OSError as error:  # those of SMTP, and of TLS, are some
            raise MailError(f"{self.host}:{self.port} {self._what_happened(error)}") from error

    def _what_happened(self, error: OSError) -> str:
        """What the server did, in its own words, and which settings that hangs on."""
        said = _words_of(error)
        match error:
            case smtplib.SMTPAuthenticationError():
                return f"refuses EMAIL_USERNAME and EMAIL_PASSWORD: {said}"
            case smtplib.SMTPSenderRefused():
                return (
                    f"did not take {self.sender} as the sender: {said}. Look at EMAIL_FROM{_MAY_WANT_SIGN_IN}"
                )
            case smtplib.SMTPRecipientsRefused():
                whom = ", ".join(error.recipients)
                return (
                    f"did not take the message for {whom}: {said}. Look at that address (for alerts, "
                    f"ALERT_EMAIL_TO){_MAY_WANT_SIGN_IN}"
                )
            case smtplib.SMTPServerDisconnected() | smtplib.SMTPConnectError() | smtplib.SMTPHeloError():
                return f"ended the conversation: {said}. Look at EMAIL_PORT and {_SECURITY}"
            case smtplib.SMTPResponseException():
                return f"did not take the message: {said}. Ask whoever runs that server"
            case smtplib.SMTPException():  # it lacks what is asked for: STARTTLS, or a way to sign in
                return (
                    f"cannot be used so: {said}. Look at {_SECURITY} and EMAIL_USERNAME (unset = no sign-in)"
                )
            case ssl.SSLError():
                return f"makes no secure connection: {said}. Look at EMAIL_HOST, EMAIL_PORT and {_SECURITY}"
            case _:
                return f"cannot be reached: {said}. Look at EMAIL_HOST, EMAIL_PORT and {_SECURITY}"

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


def _words_of(error: OSError) -> str:
    """What an error says, without a full stop; of several refused recipients, what was said of the first."""
    code: int
    words: bytes | str
    if isinstance(error, smtplib.SMTPRecipientsRefused):
        code, words = next(iter(error.recipients.values()))
    elif isinstance(error, smtplib.SMTPResponseException):
        code, words = error.smtp_code, error.smtp_error
    else:
        return str(error.strerror or error).rstrip(".") or type(error).__name__
    text = words.decode(errors="replace") if isinstance(words, bytes) else words
    return f"{code} {' '.join(text.split())}".rstrip(" .")
