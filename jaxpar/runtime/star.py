"""Lines of JSON between process 0 and each of the others: the watchdog's own connections.

Closed by the system when a process ends, however it ends, so that the others know at once.
"""

from __future__ import annotations

import hmac
import json
import selectors
import socket
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

MOST_BYTES = 65_536
"""Of a line; whoever sends a longer one is no process of ours."""


@dataclass
class Line:
    """One connection, and what came in of a line that is not whole yet."""

    connection: socket.socket
    begun: bytes = b""

    def send(self, message: dict[str, Any]) -> None:
        """Send a message; dropped where the other end does not read, or is gone."""
        with suppress(OSError):
            self.connection.send(json.dumps(message).encode() + b"\n")

    def received(self) -> list[dict[str, Any]] | None:
        """The messages that have come; None once the other end is closed."""
        try:
            came = self.connection.recv(MOST_BYTES)
        except BlockingIOError:
            return []
        except OSError:
            return None
        if not came or len(self.begun) > MOST_BYTES:
            return None
        *whole, self.begun = (self.begun + came).split(b"\n")
        try:
            messages = [json.loads(line) for line in whole]
        except ValueError:
            return None
        return messages if all(isinstance(message, dict) for message in messages) else None


@dataclass
class Hub:
    """Process 0's end: a connection of every other process.

    Attributes:
        host: the interface that it listens on; "" for all.
        token: what a process says first, so that a stranger is not listened to.
    """

    host: str
    token: str
    lines: dict[int, Line] = field(default_factory=dict)

    def __post_init__(self):
        self._listening = socket.create_server((self.host, 0))
        self._listening.setblocking(False)
        self.port: int = self._listening.getsockname()[1]
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listening, selectors.EVENT_READ)

    def poll(self, seconds: float) -> list[tuple[int, dict[str, Any] | None]]:
        """What came within so long: (process, message), the message None where it is gone."""
        came: list[tuple[int, dict[str, Any] | None]] = []
        for key, _ in self._selector.select(seconds):
            if key.fileobj is self._listening:
                self._accept()
                continue
            line: Line = key.data
            messages = line.received()
            number = next((n for n, other in self.lines.items() if other is line), None)
            if number is None and messages:
                number = self._known(line, messages.pop(0))
            if messages is None or (number is None and messages):
                self._selector.unregister(line.connection)
                line.connection.close()
                if number is not None:
                    del self.lines[number]
                    came.append((number, None))
            elif number is not None:
                came += [(number, message) for message in messages]
        return came

    def send(self, message: dict[str, Any]) -> None:
        """Tell every process."""
        for line in self.lines.values():
            line.send(message)

    def wait_until_alone(self, seconds: float) -> None:
        """Wait until every process has closed its connection, or for so long."""
        until = time.monotonic() + seconds
        while self.lines and (left := until - time.monotonic()) > 0:
            self.poll(left)

    def close(self) -> None:
        """Close every connection."""
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # pyright: ignore[reportAttributeAccessIssue]  (each is a socket)
        self._selector.close()

    def _accept(self) -> None:
        """Take a connection, of whom is not known yet."""
        with suppress(OSError):
            connection, _ = self._listening.accept()
            connection.setblocking(False)
            self._selector.register(connection, selectors.EVENT_READ, Line(connection))

    def _known(self, line: Line, hello: dict[str, Any]) -> int | None:
        """The process that a connection is of, by its first message."""
        said, number = str(hello.get("token")).encode(), hello.get("process")
        if not hmac.compare_digest(said, self.token.encode()) or not isinstance(number, int):
            return None
        self.lines[number] = line
        return number


class Spoke:
    """Another process's end: its connection to process 0."""

    def __init__(self, host: str, port: int, token: str, number: int):
        self._line = Line(socket.create_connection((host, port), timeout=30))
        self._line.send({"token": token, "process": number})
        self._line.connection.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._line.connection, selectors.EVENT_READ)

    def poll(self, seconds: float) -> list[tuple[int, dict[str, Any] | None]]:
        """As of a hub: what came of process 0 within so long."""
        if not self._selector.select(seconds):
            return []
        messages = self._line.received()
        if messages is None:
            return [(0, None)]
        return [(0, message) for message in messages]

    def send(self, message: dict[str, Any]) -> None:
        """Tell process 0."""
        self._line.send(message)

    def close(self) -> None:
        """Close the connection."""
        self._selector.close()
        self._line.connection.close()
