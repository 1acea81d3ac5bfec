"""`trace-core` in a process that kills itself at a write of the ledger, counted: KILL_AT="12 before" or "12 after".

With the argument ``serve`` it loads what the command needs once, and forks a child for each order that comes as a line
of JSON: its arguments, folder, environment, and the files for what it says. The child starts when told to.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from kills import kill_at_a_write

from trace_core.cli import main


def command() -> None:
    kill_at_a_write()
    main()


def child(order: dict[str, Any]) -> None:
    os.chdir(order["folder"])
    os.environ.clear()
    os.environ.update(order["environment"])
    for number, file in ((1, order["out"]), (2, order["err"])):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
    sys.argv = ["trace-core", *order["arguments"]]
    code = 1
    try:
        command()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:  # noqa: BLE001 - the child ends here, whatever it was
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # not back into the loop of the parent


def say(number: int) -> None:
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


def serve() -> None:
    import openai

    openai.DefaultAsyncHttpxClient  # noqa: B018 - loads the client
    for line in sys.stdin:
        order = json.loads(line)
        ready, go = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(go)
            os.read(ready, 1)
            child(order)
        os.close(ready)
        say(pid)
        sys.stdin.readline()
        os.close(go)
        say(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


if sys.argv[1:] == ["serve"]:
    serve()
else:
    command()
