"""What every test gets: no provider keys, no way out of this machine; and the wheel, built once per session."""

from __future__ import annotations

import ipaddress
import os
import signal
import socket
from typing import TYPE_CHECKING, Any

import pytest
import wheel_venv as wheels
from hypothesis import settings

if TYPE_CHECKING:
    from wheel_venv import WheelVenv

# No deadline for an example: a busy machine is no failure, and shrinking one for its time takes minutes.
settings.register_profile("trace_core", deadline=None)
settings.load_profile("trace_core")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a run in the background: tests of Ctrl-C need the usual
    signal.signal(signal.SIGINT, signal.default_int_handler)

_SECRET_ENDINGS = ("_API_KEY", "_API_BASE", "_BASE_URL", "_ACCESS_KEY", "_SECRET_KEY")


@pytest.fixture(autouse=True)
def no_provider_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """A developer's own keys must neither be used by a test nor change what it sees."""
    for name in list(os.environ):
        if name.endswith(_SECRET_ENDINGS):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def loopback_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests talk to servers of their own; a connection to anywhere else is a mistake in the test or in the library."""
    connect, connect_ex = socket.socket.connect, socket.socket.connect_ex

    def refuse_others(address: Any) -> None:
        if isinstance(address, tuple) and not _is_loopback(address[0]):
            raise OSError(f"tests may reach only this machine, got {address!r}")

    def guarded(self: socket.socket, address: Any) -> None:
        refuse_others(address)
        connect(self, address)

    def guarded_ex(self: socket.socket, address: Any) -> int:
        refuse_others(address)
        return connect_ex(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)
    monkeypatch.setattr(socket.socket, "connect_ex", guarded_ex)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host in ("localhost", "")


@pytest.fixture(scope="session")
def wheel_venv(tmp_path_factory: pytest.TempPathFactory) -> WheelVenv:
    """The wheel of the present tree, installed into a clean environment that borrows its dependencies from this one."""
    return wheels.make(tmp_path_factory.mktemp("wheel") / "built")
