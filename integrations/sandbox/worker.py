"""The program of the worker process: a clean interpreter that forks once per call. Started by its path, never imported.

It reads control messages, forks, reaps and kills; no candidate code and no candidate data ever pass through it. Every
call comes with its own descriptors: a channel (for the child alone), a status pipe (for the worker alone) and a file
for what is printed. Where there is no fork, ``once`` runs a single call in this very process.
"""

from __future__ import annotations

import os
import struct
import sys
from typing import Any

HERE = os.path.dirname(os.path.abspath(__file__))
STATUS = struct.Struct(">cqqd")  # tag, pid or wait status or errno, peak memory in KiB, CPU seconds
FORKED, ENDED, FAILED = b"F", b"X", b"E"


def load(name: str) -> Any:
    """A neighbouring file as a module, under a name that no user's module has."""
    from importlib.util import module_from_spec, spec_from_file_location

    full = f"_sandbox_{name}"
    spec = spec_from_file_location(full, os.path.join(HERE, f"{name}.py"))
    if spec is None or spec.loader is None:
        raise ImportError(f"{name}.py is missing beside {__file__}")
    module = module_from_spec(spec)
    sys.modules[full] = module
    spec.loader.exec_module(module)
    return module


def load_parts(packages: str) -> tuple[Any, Any, Any]:
    """(frames, confine, candidate); msgpack is taken from the folder ``packages``."""
    sys.path.insert(0, packages)
    for name in ("arrays", "blobs", "codec"):
        load(name)
    sys.path.remove(packages)
    for name in ("filters", "landlock", "privileges", "seccomp"):
        load(name)
    parts = load("frames"), load("confine")
    for name in ("build", "tool_calls"):
        load(name)
    return (*parts, load("candidate"))


class Call:
    """A child at work."""

    def __init__(self, call_id: int, status: int) -> None:
        self.call_id = call_id
        self.status = status


class Worker:
    """The loop: control messages in, forks out, ends reported."""

    def __init__(self, control: Any, parts: tuple[Any, Any, Any], config: dict[str, Any]) -> None:
        self._control = control
        self._frames, self._confine, self._candidate = parts
        self._prepared = self._confine.Prepared(config["limits"], config["jail"])
        self._prepared.prepare()
        sys.modules["_sandbox_build"].guard_imports(config["imports"])
        self._base = config["base"]
        self._calls: dict[int, Call] = {}
        self._pid = os.getpid()
        self._tried: set[str] = set()

    def run(self) -> None:
        """Serve until the host is gone."""
        import select
        import signal

        ended, wakeup = os.pipe()
        for end in (ended, wakeup):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        poller = select.poll()
        poller.register(self._control, select.POLLIN)
        poller.register(ended, select.POLLIN)
        while True:
            ready = dict(poller.poll())
            if ended in ready:
                os.read(ended, 4096)
                self._reap()
            if self._control.fileno() in ready and not self._serve():
                return

    def _serve(self) -> bool:
        import msgpack

        received = self._receive()
        if received is None:
            self._finish()
            return False
        body, descriptors = received
        message = msgpack.unpackb(body)
        if message["do"] == "call":
            self._fork(message, *descriptors)
        elif message["do"] == "kill":
            for pid, call in self._calls.items():
                if call.call_id == message["id"]:
                    self._kill(pid)
        return True

    def _receive(self) -> tuple[bytes, list[int]] | None:
        import socket

        head, descriptors, _, _ = socket.recv_fds(self._control, self._frames.HEADER.size, 3)
        if not head:
            return None
        try:
            head += self._frames.read_exactly(self._control.fileno(), self._frames.HEADER.size - len(head))
            _, length = self._frames.HEADER.unpack(head)
            return self._frames.read_exactly(self._control.fileno(), length), descriptors
        except self._frames.ChannelClosed:
            return None

    def _fork(self, message: dict[str, Any], channel: int, status: int, output: int) -> None:
        for name in message["preload"]:
            self._preload(name)
        rules = self._prepared.rules(message["directory"], message["readable"])
        place = self._confine.Place(
            directory=message["directory"],
            channel=channel,
            output=output,
            supervisor=self._pid,
            prepared=self._prepared,
            rules=rules,
            given=message["given"],
        )
        try:
            pid = os.fork()
        except OSError as error:
            self._report(status, FAILED, error.errno or 0)
            os.close(status)
        else:
            if pid == 0:
                self._be_child(place)
            self._calls[pid] = Call(message["id"], status)
            self._report(status, FORKED, pid)
        self._prepared.release_rules(rules)
        os.close(channel)
        os.close(output)

    def _be_child(self, place: Any) -> None:
        try:
            self._confine.apply(place, self._confine.FORKED)
            self._candidate.serve(self._confine.CHANNEL, self._confine.CHANNEL, self._prepared.filter)
        except BaseException:  # noqa: BLE001 - the end of this process; the file for its output tells the host why
            import traceback

            os.write(1, traceback.format_exc().encode())
        finally:
            os._exit(1)

    def _preload(self, name: str) -> None:
        """Import once what calls would otherwise import each for itself."""
        if name in self._tried:
            return
        self._tried.add(name)
        try:
            __import__(name)
        except BaseException as error:  # noqa: BLE001 - the candidate will meet the same error where it can be told
            sys.stderr.write(f"preload of {name}: {type(error).__name__}: {error}\n")
        self.settle()

    def settle(self) -> None:
        """After something was loaded: keep the collector off it, so that children share these pages, and measure."""
        import gc

        gc.collect()
        gc.freeze()
        self._prepared.measure()

    def _report(self, status: int, tag: bytes, number: int, peak: int = 0, cpu: float = 0.0) -> None:
        try:
            os.write(status, STATUS.pack(tag, number, peak, cpu))
        except BrokenPipeError:  # the host has given up on this call
            return

    def _kill(self, pid: int) -> None:
        """Kill a child that was not reaped yet, so the number still means it, and all of its group."""
        import signal

        for kill in (os.kill, os.killpg):
            try:
                kill(pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                continue

    def _reap(self) -> None:
        while True:
            pid, status, usage = self._ended_child()
            if pid == 0:
                return
            call = self._calls.pop(pid, None)
            if call is None:  # an orphan that ended by itself
                continue
            self._sweep()
            self._report(call.status, ENDED, status, usage.ru_maxrss, usage.ru_utime + usage.ru_stime)
            os.close(call.status)

    def _ended_child(self) -> tuple[int, int, Any]:
        """Reap one child that has ended, and kill its group: (pid, wait status, resource usage); pid 0 for none."""
        try:
            if not hasattr(os, "waitid"):  # macOS: the group is killed when its number is free already
                pid, status, usage = os.wait4(-1, os.WNOHANG)
                if pid in self._calls:
                    self._kill(pid)
                return pid, status, usage
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if found is None:
                return 0, 0, None
            if found.si_pid in self._calls:
                self._kill(found.si_pid)
            return os.wait4(found.si_pid, 0)
        except ChildProcessError:
            return 0, 0, None

    def _sweep(self) -> None:
        """Kill what ended candidates left behind: as sub-reaper this process has become its parent."""
        import signal

        while orphans := self._children() - self._calls.keys():
            for pid in orphans:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)

    def _children(self) -> set[int]:
        found: set[int] = set()
        try:
            for thread in os.listdir("/proc/self/task"):  # a preloaded library may have started some
                with open(f"/proc/self/task/{thread}/children") as listing:
                    found.update(int(word) for word in listing.read().split())
        except OSError:  # no such files: no sub-reaper either
            return set()
        return found

    def _finish(self) -> None:
        """The host is gone: leave nothing behind."""
        import shutil

        for pid in list(self._calls):
            self._kill(pid)
            os.waitpid(pid, 0)
        self._calls.clear()
        self._sweep()
        shutil.rmtree(self._base, ignore_errors=True)


def serve(descriptor: str, packages: str) -> None:
    """Be the forking worker on an inherited control socket."""
    import socket

    parts = load_parts(packages)
    control = socket.socket(fileno=int(descriptor))
    control.set_inheritable(False)
    frames = parts[0]
    import msgpack  # found now

    _, body = frames.read(control.fileno())
    config = msgpack.unpackb(body, unicode_errors="surrogatepass")
    sys.path[:] = config["path"]
    sys.argv[:] = [""]
    worker = Worker(control, parts, config)
    worker.settle()
    frames.write(control.fileno(), 0, b"ready")
    worker.run()
    os._exit(0)


def once(packages: str, output: str) -> None:
    """Run one call in this process: request on standard input, answers on standard output, then leave."""
    outgoing, incoming = os.dup(1), os.dup(0)
    nothing, printed = os.open(os.devnull, os.O_RDONLY), os.open(output, os.O_WRONLY | os.O_APPEND)
    for target, source in ((0, nothing), (1, printed), (2, printed)):
        os.dup2(source, target)
    os.close(nothing)
    os.close(printed)
    frames, confine, candidate = load_parts(packages)
    import msgpack

    _, body = frames.read(incoming)
    config = msgpack.unpackb(body, unicode_errors="surrogatepass")
    sys.path[:] = config["path"]
    sys.argv[:] = [""]
    prepared = confine.Prepared(config["limits"], config["jail"])
    prepared.prepare()
    sys.modules["_sandbox_build"].guard_imports(config["imports"])
    place = confine.Place(directory=config["base"], channel=incoming, output=1, supervisor=0, prepared=prepared)
    confine.apply(place, confine.FRESH)
    candidate.serve(incoming, outgoing, None)


if __name__ == "__main__":
    {"serve": serve, "once": once}[sys.argv[1]](*sys.argv[2:])
