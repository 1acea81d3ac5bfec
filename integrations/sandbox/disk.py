"""How much a candidate has written: to its working directory, and to files that have no name any more.

The kernel limits the size of each file; how many there are it does not.
"""

from __future__ import annotations

import os

MAX_ENTRIES = 5_000  # some disks take a millisecond to remove one
MAX_FOLDERS = 200  # to look into: a look must not take longer than the time between two
MAX_DEPTH = 64  # of folders: deeper ones are made to hide something


def over(directory: str, pid: int, limit: int) -> bool:
    """Whether the files in ``directory`` and those the process holds open take more than ``limit`` bytes of disk.

    A look takes microseconds while the folder is empty. Folders that are too many, too deep or locked are too much.
    """
    seen: dict[tuple[int, int], int] = {}
    folders = [(directory, 0)]
    while folders:
        folder, depth = folders.pop()
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    found = entry.stat(follow_symlinks=False)
                    seen[found.st_dev, found.st_ino] = found.st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        folders.append((entry.path, depth + 1))
                    if len(seen) > MAX_ENTRIES or depth > MAX_DEPTH or len(folders) > MAX_FOLDERS:
                        return True
        except FileNotFoundError:
            continue
        except OSError:
            if depth:
                return True
    device = os.stat(directory).st_dev if os.path.isdir(directory) else -1
    seen.update(_held_open(pid, device))
    return sum(seen.values()) > limit


def _held_open(pid: int, device: int) -> dict[tuple[int, int], int]:
    """Unlinked files on the same disk that the process still has (Linux)."""
    found: dict[tuple[int, int], int] = {}
    folder = f"/proc/{pid}/fd"
    try:
        names = os.listdir(folder)
    except OSError:  # no /proc, or it has ended
        return found
    for name in names:
        try:
            seen = os.stat(f"{folder}/{name}")
        except OSError:
            continue
        if seen.st_dev == device and seen.st_nlink == 0:
            found[seen.st_dev, seen.st_ino] = seen.st_blocks * 512
    return found


__all__ = ["over"]
