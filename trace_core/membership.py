"""Who compares two nodes: the user with ``==``, or a container that looks for one of them.

``node in nodes`` and ``nodes.remove(node)`` ask for that very node, not for one with an equal value. Both reach
``Node.__eq__``, and only the running instruction tells them from a comparison that is to be recorded.
"""

from __future__ import annotations

from functools import lru_cache
from opcode import opmap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import CodeType, FrameType

_CONTAINS_OP = opmap.get("CONTAINS_OP", -1)
_CALLS = frozenset(opmap[name] for name in ("CALL", "PRECALL") if name in opmap)
_SEARCHES = frozenset({"remove", "index", "count"})  # of list, tuple and deque


def looks_for_node(frame: FrameType) -> bool:
    """Whether the running instruction searches a container.

    Where the interpreter cannot tell (no positions in the byte code, a search under another name), values are compared.
    """
    position = frame.f_lasti
    if position < 0:
        return False
    code = frame.f_code
    opcode = code.co_code[position]
    return opcode == _CONTAINS_OP or (opcode in _CALLS and _is_search(code, position))


@lru_cache(maxsize=1024)
def _is_search(code: CodeType, position: int) -> bool:
    """Whether the call at ``position`` is one of the method ``remove``, ``index`` or ``count``.

    The attribute that a call takes its function from begins where the call begins, and is the last one that does.
    """
    import dis

    begins: dict[tuple[int | None, int | None], str] = {}
    for instruction in dis.get_instructions(code):
        where = instruction.positions
        if where is None or where.col_offset is None:
            continue
        start = (where.lineno, where.col_offset)
        if instruction.offset >= position:
            return instruction.offset == position and begins.get(start) in _SEARCHES
        if instruction.opname in ("LOAD_METHOD", "LOAD_ATTR"):
            begins[start] = str(instruction.argval)
    return False
