"""A mail server of the tests: it takes messages and keeps them."""

from __future__ import annotations

import email
import email.policy
import re
import socketserver
import threading
import time
from contextlib import contextmanager


class SmtpServer(socketserver.ThreadingTCPServer):
    """As much SMTP as a client needs to hand over a message."""

    daemon_threads = True

    def __init__(self, refuses="", offers="", slow_s=0.0):
        super().__init__(("127.0.0.1", 0), SmtpSession)
        self.refuses, self.offers, self.slow_s = refuses, offers, slow_s
        self.messages, self.recipients = [], []

    @property
    def letters(self):
        """The messages, read: with their subjects, and their text as it is shown."""
        return [email.message_from_string(text, policy=email.policy.default) for text in self.messages]

    def links(self):
        """Every address that a message has on a line of its own, oldest first; the portal's own left out."""
        found = []
        for letter in self.letters:
            lines = letter.get_content().split("\n")
            found += [line.strip() for line in lines if re.match(r"https?://[^/]+/.", line)]
        return found


class SmtpSession(socketserver.StreamRequestHandler):
    def handle(self):
        time.sleep(self.server.slow_s)
        self.say("220 test")
        while line := self.rfile.readline().decode().strip():
            word = line.upper().split(":")[0].split()[0]
            if word == self.server.refuses:
                self.say("550 no")
            elif word == "EHLO" and self.server.offers:
                self.say("250-test")
                self.say(f"250 {self.server.offers}")
            elif word == "RCPT":
                self.server.recipients.append(line.partition(":")[2])
                self.say("250 ok")
            elif word == "DATA":
                self.say("354 go on")
                self.server.messages.append(self.read_message())
                self.say("250 ok")
            elif word == "QUIT":
                self.say("221 bye")
                return
            else:
                self.say("250 ok")

    def read_message(self):
        lines = []
        while (line := self.rfile.readline()) != b".\r\n":
            lines.append(line.decode())
        return "".join(lines)

    def say(self, text):
        self.wfile.write(f"{text}\r\n".encode())


@contextmanager
def mail_server(**given):
    """A server that runs: ``refuses`` a word of SMTP, ``offers`` an extension, greets after ``slow_s``."""
    with SmtpServer(**given) as server:
        thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.02))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
