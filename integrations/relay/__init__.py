"""Calls of language models from rollouts in other processes: asked for there, made by the process with the accounts."""

from __future__ import annotations

import socket


def available() -> bool:
    """Whether this system has the unix sockets that it takes."""
    return hasattr(socket, "AF_UNIX")
