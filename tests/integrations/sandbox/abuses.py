"""A program that lets candidates misbehave, and prints what came of it as JSON. Run by ``test_jail_abuses``.

It is a program of its own so that it can be started with a secret in its environment, and by another user.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import textwrap
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

from more_abuses import MORE

import trace_core as tc
from trace_core.integrations.sandbox import JailRunner

CANARY = "sk-canary-" + "7d1f0c3a"

# name -> (what may come of it, the body of ``def f(outside, host, port)``); "any" for an error or a value, but none of
# its own assertions; "error" for any error
ABUSES: dict[str, tuple[str, str]] = {
    "endless loop": ("Timeout", "while True: pass"),
    "loop that ignores signals": (
        "Timeout",
        """
        import signal
        for number in range(1, 65):
            try: signal.signal(number, signal.SIG_IGN)
            except (OSError, ValueError): pass
        while True:
            try:
                while True: pass
            except BaseException: pass
        """,
    ),
    "regular expression that holds the interpreter": (
        "Timeout",
        "import re; return re.match(r'(a+)+$', 'a' * 40 + 'b')",
    ),
    "endless generator": ("Timeout", "import itertools; return sum(1 for _ in itertools.count())"),
    "generator as result": ("ResultRejected", "return (i for i in range(3))"),
    "memory bomb": ("Memory", "return len(bytearray(2 ** 33))"),
    "many small objects": ("Memory", "hoard = []\nwhile True: hoard.append(bytearray(1 << 20))"),
    "shared memory": ("PolicyViolation", "import mmap; return mmap.mmap(-1, 2 ** 33)"),
    "memory in a nameless file": ("PolicyViolation", "import os; return os.memfd_create('hoard')"),
    "memory that grows down": (
        "any",
        """
        import ctypes
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        found = libc.mmap(None, ctypes.c_size_t(1 << 33), 3, 0x122, -1, 0)
        return found in (None, ctypes.c_void_p(-1).value)
        """,
    ),
    "fork": ("PolicyViolation", "import os; os.fork()"),
    "fork bomb": ("PolicyViolation", "import os\nwhile True: os.fork()"),
    "fork bomb that goes on": (
        "Timeout",
        "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    ),
    "os.system": ("any", "import os; return os.system('echo x > ' + outside + '/shell')"),
    "subprocess": ("PolicyViolation", "import subprocess; return subprocess.run(['id'], capture_output=True).stdout"),
    "posix_spawn": ("PolicyViolation", "import os; os.posix_spawn('/bin/true', ['true'], {})"),
    "multiprocessing": (
        "PolicyViolation",
        "import multiprocessing as m; m.get_context('fork').Process(target=id).start()",
    ),
    "execve": ("PolicyViolation", "import os; os.execv('/bin/cat', ['cat', '/proc/%d/environ' % host])"),
    "execve past libc": (
        "PolicyViolation",
        "import ctypes; ctypes.CDLL(None).syscall(59 if os.uname().machine == 'x86_64' else 221, b'/bin/true', 0, 0)",
    ),
    "read a file": ("PolicyViolation", "return open(outside + '/secret').read()"),
    "read a file over a link": (
        "PolicyViolation",
        "import os; os.symlink(outside + '/secret', 'link'); return open('link').read()",
    ),
    "read a file over a hard link": (
        "CandidateException",
        "import os; os.link(outside + '/secret', 'hard'); return open('hard').read()",
    ),
    "read a file over a descriptor": (
        "PolicyViolation",
        "import os; place = os.open(outside, os.O_PATH); return os.open('secret', os.O_RDONLY, dir_fd=place)",
    ),
    "read a file by ctypes": (
        "any",
        """
        import ctypes
        got = ctypes.CDLL(None).open((outside + '/secret').encode(), 0)
        return os.read(got, 100)
        """,
    ),
    "list a folder": ("PolicyViolation", "import os; return os.listdir(outside)"),
    "system files": ("PolicyViolation", "return open('/etc/shadow').read()"),
    "home": ("PolicyViolation", "import os; return os.listdir('/root')"),
    "write a file": ("PolicyViolation", "open(outside + '/secret', 'w').write('x')"),
    "make a file": ("PolicyViolation", "open(outside + '/new', 'w').close()"),
    "remove a file": ("PolicyViolation", "import os; os.remove(outside + '/secret')"),
    "move a file": ("PolicyViolation", "import os; os.rename(outside + '/secret', 'mine')"),
    "replace a file": (
        "PolicyViolation",
        "import os; open('mine', 'w').close(); os.rename('mine', outside + '/secret')",
    ),
    "truncate a file": ("PolicyViolation", "import os; os.truncate(outside + '/secret', 0)"),
    "chmod a file": ("PolicyViolation", "import os; os.chmod(outside + '/secret', 0o777)"),
    "chmod its own file's target": (
        "PolicyViolation",
        "import os; os.symlink(outside + '/secret', 'l'); os.chmod('l', 0)",
    ),
    "touch a file": ("PolicyViolation", "import os; os.utime(outside + '/secret', (1, 1))"),
    "chown a file": ("PolicyViolation", "import os; os.chown(outside + '/secret', os.getuid(), os.getgid())"),
    "extended attribute": ("PolicyViolation", "import os; os.setxattr(outside + '/secret', 'user.x', b'1')"),
    "change a library": (
        "PolicyViolation",
        "import json; open(json.__file__, 'a').write('#')",
    ),
    "change compiled code": (
        "PolicyViolation",
        "import json; open(json.__cached__, 'ab').write(b'#')",
    ),
    "one big file": ("OutputLimit", "with open('big', 'wb') as big:\n    while True: big.write(bytes(1 << 20))"),
    "disk fill": (
        "OutputLimit",
        "import itertools\nfor i in itertools.count():\n    with open(str(i), 'wb') as one: one.write(bytes(1 << 20))",
    ),
    "disk fill without names": (
        "any",
        """
        import os
        held = []
        for i in range(100_000):
            one = os.open(f'x', os.O_CREAT | os.O_RDWR); os.unlink('x')
            os.write(one, bytes(1 << 20)); held.append(one)
        while True: pass
        """,
    ),
    "TCP": ("PolicyViolation", "import socket; socket.create_connection(('127.0.0.1', port), 2)"),
    "UDP": (
        "PolicyViolation",
        "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', port))",
    ),
    "unix socket": ("PolicyViolation", "import socket; socket.socket(socket.AF_UNIX).connect(outside + '/socket')"),
    "unix datagrams": (
        "PolicyViolation",
        "import socket; socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0].sendto(b'x', outside + '/socket')",
    ),
    "abstract socket": ("PolicyViolation", "import socket; socket.socket(socket.AF_UNIX).connect('\\0canary')"),
    "address of a stream": (
        "PolicyViolation",
        "import socket; socket.socketpair()[0].sendto(b'x', outside + '/socket')",
    ),
    "netlink": ("PolicyViolation", "import socket; socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)"),
    "server": ("PolicyViolation", "import socket; socket.create_server(('127.0.0.1', 0))"),
    "web page": ("any", "import urllib.request as u; return u.urlopen(f'http://127.0.0.1:{port}/', timeout=2).read()"),
    "environment": ("value", "import os; return dict(os.environ)"),
    "environment of the host": ("PolicyViolation", "return open(f'/proc/{host}/environ').read()"),
    "environment of the worker": ("PolicyViolation", "return open(f'/proc/{os.getppid()}/environ').read()"),
    "memory of the host": ("PolicyViolation", "return open(f'/proc/{host}/mem', 'rb').read(1)"),
    "all processes": ("PolicyViolation", "import os; return os.listdir('/proc')"),
    "ptrace": (
        "PolicyViolation",
        "import ctypes; return ctypes.CDLL(None).ptrace(16, host, 0, 0)",
    ),
    "read the host's memory": (
        "PolicyViolation",
        "import ctypes; return ctypes.CDLL(None).process_vm_readv(host, 0, 0, 0, 0, 0)",
    ),
    "descriptor of the host": (
        "PolicyViolation",
        "import ctypes; libc = ctypes.CDLL(None); return libc.syscall(434, host, 0)",
    ),
    "segfault": ("Crash", "import ctypes; return ctypes.string_at(0)"),
    "abort": ("Crash", "import os; os.abort()"),
    "sys.exit": ("Crash", "import sys; sys.exit(3)"),
    "os._exit": ("Crash", "import os; os._exit(0)"),
    "kill itself": ("Crash", "import os; os.kill(os.getpid(), 9)"),
    "kill the host": ("PolicyViolation", "import os; os.kill(host, 9)"),
    "kill the worker": ("PolicyViolation", "import os; os.kill(os.getppid(), 9)"),
    "stop the worker": ("PolicyViolation", "import os, signal; os.kill(os.getppid(), signal.SIGSTOP)"),
    "kill everybody": ("PolicyViolation", "import os; os.kill(-1, 9)"),
    "kill the group of the host": ("PolicyViolation", "import os; os.killpg(os.getpgid(host), 9)"),
    "signal over a socket's owner": (
        "PolicyViolation",
        """
        import fcntl, os, signal
        one, other = os.pipe()
        fcntl.fcntl(one, 10, 9); fcntl.fcntl(one, 8, host); fcntl.fcntl(one, fcntl.F_SETFL, 0o20000)
        os.write(other, b'x')
        """,
    ),
    "limits of the host": (
        "PolicyViolation",
        "import resource; resource.prlimit(host, resource.RLIMIT_NOFILE, (1, 1))",
    ),
    "raise its own limits": (
        "any",
        """
        import resource
        for which in (resource.RLIMIT_DATA, resource.RLIMIT_FSIZE, resource.RLIMIT_CPU):
            resource.setrlimit(which, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        return len(bytearray(2 ** 33))
        """,
    ),
    "outlive the worker": (
        "any",
        "import ctypes; assert ctypes.CDLL(None).prctl(1, 0, 0, 0, 0) == -1",
    ),
    "daemon": (
        "PolicyViolation",
        "import os\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0: time.sleep(1000)",
    ),
    "thread left behind": (
        "value",
        """
        import threading
        for daemon in (True, False):
            threading.Thread(target=threading.Event().wait, daemon=daemon).start()
        """,
    ),
    "thread bomb": (
        "any",
        "import threading\nwhile True: threading.Thread(target=threading.Event().wait).start()",
    ),
    "changed builtins": (
        "any",
        """
        import builtins, os, sys, json
        for name in ("len", "isinstance", "print", "open", "type", "list", "dict", "range", "getattr"):
            setattr(builtins, name, None)
        json.dumps = os.getcwd = None
        sys.modules.clear()
        """,
    ),
    "deep recursion": ("CandidateException", "return f(outside, host, port)"),
    "recursion without a limit": (
        "any",
        """
        import sys
        sys.setrecursionlimit(10 ** 9)
        class D:
            def __repr__(self): return repr([self])
        return repr(D())
        """,
    ),
    "output without end": ("OutputLimit", "for i in range(10 ** 9): print('x' * 99)"),
    "output in one piece": ("OutputLimit", "print('x' * 30_000_000)"),
    "big result": ("ResultRejected", "return 'x' * 40_000_000"),
    "__reduce__": (
        "ResultRejected",
        "class T:\n    def __reduce__(self): return (open, (outside + '/new', 'w'))\nreturn T()",
    ),
    "garbage as answer": ("ResultRejected", "import os; os.write(3, b'garbage' * 100)"),
    "forged answer of another call": ("ResultRejected", "import os; os.write(3, bytes(100_000))"),
    "forged question": (
        "any",
        """
        import os, struct, sys
        codec, frames = sys.modules['_sandbox_codec'], sys.modules['_sandbox_frames']
        head = codec.pack({'tool': 'os.system'})
        os.write(3, struct.pack('>QQ', 1, len(head) + 4) + len(head).to_bytes(4, 'big') + head)
        """,
    ),
    "standard input": ("CandidateException", "return input()"),
    "namespaces": ("PolicyViolation", "import ctypes; return ctypes.CDLL(None).unshare(0x10000000)"),
    "mount": ("PolicyViolation", "import ctypes; return ctypes.CDLL(None).mount(b'x', b'/tmp', b'tmpfs', 0, 0)"),
    "chroot": ("PolicyViolation", "import os; os.mkdir('x'); os.chroot('x')"),
    "become root": ("PolicyViolation", "import os; os.setuid(0)"),
    "restart the machine": ("PolicyViolation", "import ctypes; return ctypes.CDLL(None).reboot(0x1234567)"),
    "load a program into the kernel": (
        "PolicyViolation",
        "import ctypes; return ctypes.CDLL(None).syscall(321 if os.uname().machine == 'x86_64' else 280, 0, 0, 0)",
    ),
    "rings": ("PolicyViolation", "import ctypes; return ctypes.CDLL(None).syscall(425, 1, 0)"),
    "processes by an unseen flag": (
        "any",
        "import ctypes; assert ctypes.CDLL(None).syscall(435, bytes(88), 88) == -1",
    ),
    "numbers of another processor": (
        "any",
        "import ctypes; assert ctypes.CDLL(None).syscall(0x40000000 + 39) < 0",
    ),
    "handler of the refusal": ("PolicyViolation", "import signal; signal.signal(signal.SIGSYS, signal.SIG_IGN)"),
    "refusal that is not heard": (
        "any",
        "import os, signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\nos.kill(host, 9)",
    ),
    "leave the jail by another one": (
        "any",
        "import ctypes; return open(outside + '/secret').read() if ctypes.CDLL(None).syscall(446, 0, 0) else None",
    ),
    "end that is taken away": (
        "any",
        "import os, sys\nos._exit = sys.exit = lambda *code: None\nos.kill(host, 9)",
    ),
    "signal by a thread": (
        "any",
        "import os, threading\nt = threading.Thread(target=os.kill, args=(host, 9)); t.start(); t.join()",
    ),
    "clock": ("PolicyViolation", "import time; time.clock_settime(time.CLOCK_REALTIME, 0)"),
    "terminal": ("PolicyViolation", "import fcntl; fcntl.ioctl(0, 0x5412, b'x')"),
    "fifo": ("PolicyViolation", "import os; os.mkfifo('x')"),
}

ABUSES |= MORE


class Candidate:
    """As the core hands it over."""

    name, filename, is_async = "f", "<code f v3>", False

    def __init__(self, body: str) -> None:
        self.source = source_of(body)


def source_of(body: str, name: str = "f") -> str:
    """The body as a function."""
    text = textwrap.indent(textwrap.dedent(body).strip(), "    ")
    return f"import os, time\ndef {name}(outside, host, port):\n{text}\n"


def jail(timeout: float, **settings: Any) -> JailRunner:
    """Small, and without the list of imports: what is tried here are the kernel's layers."""
    small = {"timeout": timeout, "memory_mb": 256, "max_disk_bytes": 20 << 20, "max_output_bytes": 4 << 20}
    return JailRunner(**{"imports": None, **small, **settings})


class Outside:
    """Things of this program that no candidate may touch."""

    def __init__(self, folder: str) -> None:
        import socket

        self.folder = Path(folder)
        (self.folder / "secret").write_text(CANARY)
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port = self.server.getsockname()[1]
        self.unix = socket.socket(socket.AF_UNIX)
        self.unix.bind(str(self.folder / "socket"))
        self.unix.listen()
        self._before = self._look()

    def _look(self) -> Any:
        seen = os.stat(self.folder / "secret")
        listing = sorted(path.name for path in self.folder.iterdir())
        return listing, (self.folder / "secret").read_text(), seen.st_mode, seen.st_mtime_ns, seen.st_ctime_ns

    def untouched(self) -> bool:
        """Whether all is as it was, and nobody has knocked."""
        for listener in (self.server, self.unix):
            listener.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                listener.accept()
                return False
        return bool(self._look() == self._before)


def processes_in(folder: Path, worker: int, runner: JailRunner) -> list[int]:
    """All processes that work below the folder, without the worker and those that wait for calls to come."""
    waiting = [child.directory for zygote in runner._workers.values() for child in zygote._waiting]
    waiting += [str(folder)] * len(waiting)  # not there yet
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit():
                place = os.readlink(entry / "cwd")
                if place in waiting:
                    waiting.remove(place)  # one process in each, no more
                elif Path(place).is_relative_to(folder):
                    found.append(int(entry.name))
    return [pid for pid in found if pid != worker]


def try_all(outside: Outside) -> dict[str, Any]:
    """Each abuse in the jail, and what could be seen afterwards."""
    results = {}
    where = Candidate("return os.getppid(), os.getcwd()")
    # what must end by itself has all the time that a busy machine needs; what does not must not cost much of it
    with jail(60.0) as patient, jail(0.5) as hasty:
        patient.check()
        hasty.check()
        arguments = (str(outside.folder), os.getpid(), outside.port)
        for name, (expected, body) in ABUSES.items():
            runner = hasty if expected in ("Timeout", "any") else patient
            seen: dict[str, Any] = {}
            try:
                seen["value"] = repr(runner.call(Candidate(body), arguments, {}, context={}))
            except tc.TraceCoreError as error:
                seen |= {"error": type(error).__name__, "text": str(error), "kind": getattr(error, "kind", None)}
            limits = replace(runner._settings, timeout=60.0, cpu=60.0)  # it must work; on a busy machine not soon
            worker, home = runner._run(where, [(arguments, {})], {}, limits)[0].unwrap()
            seen |= {"left": processes_in(Path(home).parent, worker, runner), "untouched": outside.untouched()}
            results[name] = seen
    return results


def optimize_through_all(outside: Outside) -> dict[str, Any]:
    """Every abuse is proposed once, by a scripted model, in one optimization; the last proposal is a good one."""
    from trace_core.integrations.llm import ScriptedLLM
    from trace_core.optimizers import OptoPrime, optimize

    folder, host, port = str(outside.folder), os.getpid(), outside.port

    with jail(0.5) as runner:

        @tc.bundle(trainable=True, isolation=runner)
        def f(outside: str, host: int, port: int) -> Any:
            return "wrong"

        good = "def f(outside, host, port):\n    return 'right'\n"
        bodies = [source_of(body) for _, body in ABUSES.values()]
        answers = iter([*bodies, good])
        llm = ScriptedLLM(lambda messages: _reply(next(answers)))
        steps = len(bodies) + 1
        result = optimize(
            lambda example: f(folder, host, port),
            lambda value, example: 1.0 if value == "right" else 0.0,
            [0],
            optimizer=OptoPrime([f.code], llm),
            steps=steps,
            batch_size=1,
        )
        prompts, texts = " ".join(call.prompt for call in llm.calls), " ".join(result.failures)
        return {
            "score": result.score,
            "stopped": result.stopped,
            "steps": result.steps,
            "wanted": steps,
            "calls": len(llm.calls),
            "error": repr(result.error),
            "kinds": sorted({event.kind for event in result.history}),
            "canary": CANARY in prompts + texts,
            "violations": sum("tried what it may not do" in text for text in result.failures),
            "infrastructure": [name for name in _INFRASTRUCTURE if name in prompts + texts],
            "untouched": outside.untouched(),
            "value": f(folder, host, port).value,
        }


_INFRASTRUCTURE = ("SandboxSetupError", "RunnerError", "SandboxUnavailable", "worker.py", "zygote")


def _reply(source: str) -> str:
    return json.dumps({"reasoning": "try this", "f": source})


def main() -> None:
    """Print what came of it."""
    warnings.simplefilter("ignore", RuntimeWarning)
    # programs that ran as somebody else would be seen in the environment of this one
    assert CANARY in Path("/proc/self/environ").read_text()
    with tempfile.TemporaryDirectory() as folder:
        outside = Outside(folder)
        report = {"user": os.getuid()}
        report |= {"single": try_all(outside)} if "single" in sys.argv else {}
        report |= {"optimization": optimize_through_all(outside)} if "optimization" in sys.argv else {}
    sys.stdout.write("\n" + json.dumps(report))


if __name__ == "__main__":
    main()
