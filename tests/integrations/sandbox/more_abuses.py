"""More of what ``abuses.py`` lets candidates do: what an attacker does who has read how the jail is made.

As there: name -> (what may come of it, the body of ``def f(outside, host, port)``). ``error`` is any error, no value.
"""

from __future__ import annotations

import textwrap

_FORGE = """
import os, struct, sys
frame = sys._getframe()
while 'call_id' not in frame.f_locals: frame = frame.f_back
ident, codec = frame.f_locals['call_id'], sys.modules['_sandbox_codec']
def say(head, value=b'', length=None):
    packed = codec.pack(head)
    body = len(packed).to_bytes(4, 'big') + packed + value
    data = struct.pack('>QQ', ident, len(body) if length is None else length) + body
    while data: data = data[os.write(3, data):]
"""


def _forged(text: str, then: str = "os._exit(0)") -> str:
    """A body that speaks with the host itself, under the right call id, and then does something else."""
    return f"{_FORGE}{textwrap.dedent(text)}\n{then}"


def _number(x86: int, arm: int) -> str:
    return f"ctypes.CDLL(None).syscall({x86} if os.uname().machine == 'x86_64' else {arm}, "


MORE: dict[str, tuple[str, str]] = {
    # --- what it may see
    "its own environment as the kernel keeps it": ("PolicyViolation", "return open('/proc/self/environ').read()"),
    "its own memory as a file": ("PolicyViolation", "return open('/proc/self/mem', 'rb').read(1)"),
    "the root behind its process": ("PolicyViolation", "return open('/proc/self/root' + outside + '/secret').read()"),
    "the folder of its parent": ("PolicyViolation", "return os.listdir(f'/proc/{os.getppid()}/cwd/')"),
    "a descriptor that only names a file": (
        "PolicyViolation",
        "place = os.open(outside + '/secret', os.O_PATH); return open(f'/proc/self/fd/{place}').read()",
    ),
    "inherited descriptors": (
        "value",
        """
        seen = []
        for number in range(4, 4096):
            try: os.fstat(number)
            except OSError: continue
            seen.append(number)
        assert not seen, seen
        """,
    ),
    "secrets in memory that it was forked from": (
        "value",
        """
        import ctypes
        needle = bytes(reversed(b'yranac-ks'))
        for line in open('/proc/self/maps'):
            places, rights, _, _, _, *name = line.split()
            if rights.startswith('rw') and not (name and name[0].startswith(('[v', '/dev'))):
                start, end = (int(place, 16) for place in places.split('-'))
                held = ctypes.string_at(start, end - start)
                at = held.find(needle)
                while at >= 0:  # what it has just made itself is not what it looks for
                    assert held[at + 9 : at + 17] != bytes(reversed(b'a3c0f1d7'))[:8], hex(start + at)
                    at = held.find(needle, at + 1)
        """,
    ),
    "a library made writable by a link": (
        "error",
        "import json; os.link(json.__file__, 'mine'); open('mine', 'r+').close()",
    ),
    # --- the kernel's other doors
    "faults by hand": ("PolicyViolation", f"import ctypes; {_number(323, 282)}0)"),
    "keys of the kernel": ("PolicyViolation", f"import ctypes; {_number(250, 219)}0, 0, 0, 0, 0)"),
    "counters of the processor": ("PolicyViolation", f"import ctypes; {_number(298, 241)}0, 0, -1, -1, 0)"),
    "another namespace": ("PolicyViolation", f"import ctypes; {_number(308, 268)}0, 0)"),
    "memory without randomness": ("any", f"import ctypes; assert {_number(135, 92)}0x0040000) == -1"),
    "to be looked into": ("any", "import ctypes; assert ctypes.CDLL(None).prctl(4, 1, 0, 0, 0) == -1"),
    "a tracer of its own": ("any", "import ctypes; assert ctypes.CDLL(None).prctl(0x59616d61, host, 0, 0, 0) == -1"),
    "locked memory": ("any", "import ctypes; assert ctypes.CDLL(None).mlockall(3) == -1"),
    "watches without end": ("any", f"import ctypes\nfor _ in range(999): assert {_number(294, 26)}0) == -1"),
    "shared memory of System V": ("any", f"import ctypes; assert {_number(29, 194)}0, 1 << 30, 0o1777) == -1"),
    "a queue of messages": ("any", f"import ctypes; assert {_number(240, 180)}b'q', 0o102, 0o777, 0) == -1"),
    "timers of the kernel": ("any", f"import ctypes; assert {_number(222, 107)}0, 0, bytes(8)) == -1"),
    "priority": ("PolicyViolation", "os.nice(-5)"),
    "priority of the host": ("PolicyViolation", "os.setpriority(os.PRIO_PROCESS, host, 19)"),
    "real-time scheduling": ("PolicyViolation", "os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50))"),
    "processors of the host": ("PolicyViolation", "os.sched_setaffinity(host, {0})"),
    "another group": ("PolicyViolation", "os.setpgid(0, os.getpgid(host))"),
    "another session": ("PolicyViolation", "os.setsid()"),
    "its own group": ("PolicyViolation", "os.kill(0, 9)"),
    "system calls of 32 bits": (
        "any",
        """
        import ctypes, mmap
        if os.uname().machine != 'x86_64': return
        page = mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=7)
        page.write(bytes.fromhex('b814000000cd80c3'))  # mov eax, 20 (getpid); int 0x80; ret
        found = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
        assert found < 0, found
        """,
    ),
    "an address in a message": (
        "error",
        "import socket; socket.socketpair()[0].sendmsg([b'x'], [], 0, outside + '/socket')",
    ),
    # --- memory that no limit counts
    "the device of zeros as memory": (
        "PolicyViolation",
        """
        import mmap
        zeros = mmap.mmap(os.open('/dev/zero', os.O_RDONLY), 1 << 29, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
        return sum(zeros[i] for i in range(0, 1 << 29, 4096))
        """,
    ),
    "memory made writable afterwards": (
        "any",
        """
        import ctypes
        libc = ctypes.CDLL(None)
        libc.mmap.restype = ctypes.c_void_p
        place = libc.mmap(None, ctypes.c_size_t(1 << 33), 0, 0x22, -1, 0)
        assert libc.mprotect(ctypes.c_void_p(place), ctypes.c_size_t(1 << 33), 3) == -1
        """,
    ),
    "a stack without limit": (
        "error",
        "import resource; resource.setrlimit(resource.RLIMIT_STACK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))",
    ),
    "core files": (
        "error",
        "import resource; resource.setrlimit(resource.RLIMIT_CORE, (1 << 20, 1 << 20))",
    ),
    "the folder of shared memory": ("PolicyViolation", "open('/dev/shm/canary', 'w').close()"),
    "shared memory of multiprocessing": (
        "PolicyViolation",
        "from multiprocessing import shared_memory as s; s.SharedMemory(create=True, size=1 << 20)",
    ),
    "its output as a file of any size": ("OutputLimit", "os.ftruncate(1, 1 << 40)"),
    "its output as memory": ("OutputLimit", "os.posix_fallocate(1, 0, 1 << 33)"),
    "bigger pipes": ("error", "import fcntl; one, _ = os.pipe(); fcntl.fcntl(one, 1031, 1 << 20)"),
    # --- time
    "sleep": ("Timeout", "time.sleep(1000)"),
    "waiting in C": ("Timeout", "import ctypes; ctypes.CDLL(None).pause()"),
    "stopping itself": ("Timeout", "import signal; os.kill(os.getpid(), signal.SIGSTOP)"),
    "an alarm": ("Crash", "import signal; signal.setitimer(signal.ITIMER_REAL, 0.001); time.sleep(1000)"),
    "errors without end": ("OutputLimit", "while True: os.write(2, b'x' * 65536)"),
    # --- what is left in its folder
    "folders without end": ("OutputLimit", "import itertools\nfor i in itertools.count(): os.mkdir(str(i))"),
    "folders in folders": ("any", "for _ in range(3000): os.mkdir('d'); os.chdir('d')"),
    "folders that are locked": (
        "any",
        """
        os.mkdir('a')
        os.mkdir('a/b')
        open('a/b/c', 'w').close()
        os.umask(0o777)
        os.mkdir('a/locked')
        """,
    ),
    "links out of its folder": (
        "value",
        "os.mkdir('d'); [os.symlink(outside, name) for name in ('one', 'd/two')]; os.symlink('/', 'three')",
    ),
    # --- what it says
    "a list that holds itself": ("ResultRejected", "x = []; x.append(x); return x"),
    "a list that is deep": ("ResultRejected", "x = []\nfor _ in range(100_000): x = [x]\nreturn x"),
    "an exit code without end": ("Crash", "raise SystemExit(10 ** 5000)"),
    "an exception that cannot be shown": (
        "CandidateException",
        "raise type('E' * 100_000, (Exception,), {'__str__': lambda self: 1 / 0})()",
    ),
    "an exception with all kinds of characters": (
        "CandidateException",
        "raise ValueError(chr(27) + '[2J' + chr(0) + chr(0xd800) + chr(0x202e) + 'x' * 10 ** 6)",
    ),
    "causes in a circle": (
        "CandidateException",
        "a, b = ValueError('a'), ValueError('b'); a.__cause__, b.__cause__ = b, a; raise a",
    ),
    "groups in groups": (
        "CandidateException",
        "e = ValueError()\nfor _ in range(500): e = ExceptionGroup('g', [e] * 3)\nraise e",
    ),
    "a time zone that is a folder": (
        "ResultRejected",
        _forged("""
            import datetime
            packed = codec.encode(datetime.datetime(2024, 1, 1))
            assert packed.endswith(b'\\xc0')  # no zone
            say({'index': 0}, packed[:-1] + codec.pack('America'))
        """),
    ),
    "a forged result": ("value", _forged("say({'index': 0, 'seconds': 1e308}, codec.encode('forged'))")),
    "a forged time": ("value", _forged("say({'index': 0, 'seconds': float('nan')}, codec.encode('forged'))")),
    "a forged error of all sizes": (
        "Crash",
        _forged("say({'index': 0, 'error': {'kind': 'exit', 'code': 10 ** 9000, 'frames': ['x' * 9999] * 999}})"),
    ),
    "an error of no kind": ("CandidateException", _forged("say({'index': 0, 'error': [1]})")),
    "a message shorter than it says": ("Crash", _forged("say({'index': 0}, b'', 1000)")),
    "a message that does not end": ("Timeout", _forged("say({'index': 0}, b'', 1000)", "time.sleep(1000)")),
    "a message longer than there is memory": ("ResultRejected", _forged("say({'index': 0}, b'', 1 << 62)")),
    "a message without a head": ("ResultRejected", _forged("say([1])")),
    "a message out of turn": ("ResultRejected", _forged("say({'index': 7}, codec.encode(1))")),
    "answers that nobody asked for": ("value", _forged("for i in range(9): say({'index': i}, codec.encode(1))")),
    "lists that claim to be long": ("ResultRejected", _forged("say({'index': 0}, bytes.fromhex('ddffffffff'))")),
    "lists in lists": ("ResultRejected", _forged("say({'index': 0}, bytes([0x91]) * 1_000_000)")),
    "keys that collide": (
        "ResultRejected",
        _forged("""
            keys = (k * (2 ** 61 - 1) for k in range(200_000))
            keys = b''.join(b'\\xc7\\x0b\\x20' + k.to_bytes(11, 'big') + b'\\xc0' for k in keys)
            say({'index': 0}, b'\\xdf' + struct.pack('>I', 200_000) + keys)
        """),
    ),
    "members that collide": (
        "ResultRejected",
        _forged("""
            members = (k * (2 ** 61 - 1) for k in range(200_000))
            members = b''.join(b'\\xc7\\x0b\\x20' + k.to_bytes(11, 'big') for k in members)
            say({'index': 0}, b'\\xdd' + struct.pack('>I', 200_001) + b'\\xc7\\x00\\x02' + members)
        """),
    ),
    "disk fill between questions": (
        "OutputLimit",
        _forged("""
            number = 0
            while True:
                number += 1
                with open(str(number), 'wb') as one: one.write(bytes(1 << 20))
                say({'tool': 'x'}, codec.encode(((), {})))
                os.read(3, 65536)
        """),
    ),
    "questions without end": ("error", _forged("while True: say({'tool': 'x'}, codec.encode(((), {})))")),
}
