"""The child process that serves a GGUF file. Run by path with ``python -P``; it imports nothing of ours.

Standard input: one line of JSON with the settings, then nothing; its end means that the parent is gone (also when it
was killed) and ends this process. Standard output: one line of JSON, {"address": ...} or {"error": ...}.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from typing import Any

_POLL_SECONDS = 2.0


def _end_with_parent(parent: int) -> None:
    """End this process when standard input ends: by signal at once, else by a thread that reads it.

    The signal matters while the model loads, when no thread of Python's runs. A second thread looks for a change of
    parent, for the case that a forked sibling still holds the other end of the pipe.
    """
    if hasattr(os, "O_ASYNC"):
        import fcntl
        import signal

        signal.signal(signal.SIGIO, signal.SIG_DFL)  # ends the process
        fcntl.fcntl(0, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(0, fcntl.F_SETFL, fcntl.fcntl(0, fcntl.F_GETFL) | os.O_ASYNC)

    def watch_input() -> None:
        while sys.stdin.buffer.read(4096):
            pass
        os._exit(0)

    def watch_parent() -> None:
        pause = threading.Event()
        while os.getppid() == parent:
            pause.wait(_POLL_SECONDS)
        os._exit(0)

    threading.Thread(target=watch_input, daemon=True).start()
    if os.name == "posix":
        threading.Thread(target=watch_parent, daemon=True).start()


def _serve(settings: dict[str, Any]) -> Any:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = settings["path"]
    params.model_alias = {settings["alias"]}
    params.hostnames = ["127.0.0.1"]
    params.port = 0  # any free one
    params.api_keys = [settings["token"]]
    params.ui = False
    params.endpoint_slots = False
    params.verbosity = 1
    params.n_ctx = settings["context"]
    params.n_parallel = settings["slots"]
    params.kv_unified = True  # slots share the context instead of dividing it
    params.cache_prompt = True
    params.cache_ram_mib = settings["cache_mib"]
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = settings["threads"]
    return xllamacpp.Server(params)


def main() -> None:
    """Serve until the parent is gone."""
    reply = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the runtime prints goes to the log
    settings = json.loads(sys.stdin.buffer.readline())
    _end_with_parent(settings["parent"])
    try:
        server = _serve(settings)
    except Exception as error:
        json.dump({"error": f"{type(error).__name__}: {error}"}, reply)
        reply.write("\n")
        reply.flush()
        raise
    json.dump({"address": server.listening_address}, reply)
    reply.write("\n")
    reply.flush()
    threading.Event().wait()


if __name__ == "__main__":
    main()
