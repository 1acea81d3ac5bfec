"""A loopback server that sends exactly the bytes it is told to, and the responses the tests of the gateway use."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from trace_core.integrations.llm import Message

CANARY = "sk-canary-7f3b9e21d8"
ASK: list[Message] = [{"role": "user", "content": "say hi"}]


@dataclass
class Received:
    """One HTTP request as it came."""

    line: str
    headers: dict[str, str]
    raw: bytes

    @property
    def body(self) -> dict[str, Any]:
        body: dict[str, Any] = json.loads(self.raw)
        return body


Act: TypeAlias = "bytes | Callable[[socket.socket, Received], None]"


@dataclass
class RawServer:
    """Answers each request with the next act: bytes, or a function that does what it likes with the connection.

    The last act is repeated. Each connection serves one request and is closed.
    """

    acts: Sequence[Act]
    requests: list[Received] = field(default_factory=list)
    accepted: int = 0
    sent: int = 0

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._connections: list[socket.socket] = []
        self.closing = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self._start(self._accept)

    def _start(self, work: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._connections.append(connection)
            self._start(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                received = self._read(connection)
                if received is None:
                    return
                with self._lock:
                    act = self.acts[min(len(self.requests), len(self.acts) - 1)]
                    self.requests.append(received)
                if isinstance(act, bytes):
                    connection.sendall(act)
                else:
                    act(connection, received)
            except OSError:
                return  # the client hung up, which some tests are about

    @staticmethod
    def _read(connection: socket.socket) -> Received | None:
        data = b""
        while b"\r\n\r\n" not in data:
            chunk = connection.recv(65536)
            if not chunk:
                return None
            data += chunk
        head, _, body = data.partition(b"\r\n\r\n")
        line, *rest = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (entry.partition(":") for entry in rest)}
        while len(body) < int(headers.get("content-length", 0)):
            body += connection.recv(65536)
        return Received(line, headers, body)

    def close(self) -> None:
        """Stop serving and end every thread."""
        self.closing.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._connections:
            with connection:
                pass
        for thread in self._threads:
            thread.join(10)


def http(body: bytes | str | object, status: int = 200, headers: str = "", kind: str = "application/json") -> bytes:
    """A whole HTTP response. Anything but bytes and str is sent as JSON."""
    if isinstance(body, str):
        body = body.encode()
    if not isinstance(body, bytes):
        body = json.dumps(body).encode()
    head = f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n"
    return (head + headers + "\r\n").encode() + body


def payload(*texts: object, finish: str = "stop", usage: object = None, **fields: object) -> dict[str, object]:
    """A chat completion with one choice for each text."""
    usage = {"prompt_tokens": 11, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 8}} | (usage or {})  # type: ignore[operator]
    choices = [
        {"index": i, "finish_reason": finish, "message": {"role": "assistant", "content": text}}
        for i, text in enumerate(texts)
    ]
    return {"object": "chat.completion", "model": "served-model", "choices": choices, "usage": usage} | fields


def chat(*texts: object, finish: str = "stop", **fields: object) -> bytes:
    """The response with ``payload``."""
    return http(payload(*texts, finish=finish, **fields))


def fault(status: int, message: str = "no", headers: str = "", **fields: object) -> bytes:
    """An error response in OpenAI's form."""
    return http({"error": {"message": message, **fields}}, status, headers)
