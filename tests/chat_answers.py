"""What a provider of chat completions answers, for the servers that stand in for one."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler


def completion(model: str, content: str) -> bytes:
    """A whole answer: 10 tokens in, 5 out."""
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}}
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    kind = {"id": "1", "object": "chat.completion", "created": 0, "model": model}
    return json.dumps({**kind, "choices": [choice], "usage": usage}).encode()


def send(handler: BaseHTTPRequestHandler, data: bytes, status: int = 200) -> None:
    """Send JSON."""
    handler.send_response(status)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data)
