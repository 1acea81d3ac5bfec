"""Removing a folder in which a candidate could do what it liked. Stand-alone."""

from __future__ import annotations

import os
import shutil
import stat

MAX_ROUNDS = 1_000_000  # more folders than a disk has room for while a candidate runs


def remove_tree(path: str) -> None:
    """Remove a folder with whatever is in it; what cannot be removed is left to the system.

    Links are not followed. Folders may be locked, and nested deeper than a program can recurse or a path can be long.
    """
    try:
        os.rmdir(path)  # nearly always empty
    except FileNotFoundError:
        return
    except OSError:
        _remove_contents(path)


def _remove_contents(path: str) -> None:
    if os.path.islink(path):  # put in the folder's place
        os.unlink(path)
    elif os.rename in os.supports_dir_fd and os.scandir in os.supports_fd:
        try:
            os.chmod(path, stat.S_IRWXU)
            root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:  # not ours, or going away by itself
            return
        try:
            _flatten(root)
            os.rmdir(path)
        except OSError:
            return
        finally:
            os.close(root)
    else:
        shutil.rmtree(path, ignore_errors=True)


def _flatten(root: int) -> None:
    """Empty a folder: the folders in its folders are moved up into it, so that no path is ever long."""
    moved = 0
    for _ in range(MAX_ROUNDS):
        folders = _remove_files(root)
        if not folders:
            return
        for folder in folders:
            try:
                os.rmdir(folder, dir_fd=root)  # nearly always empty
                continue
            except OSError:
                pass
            os.chmod(folder, stat.S_IRWXU, dir_fd=root)
            inner = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=root)
            try:
                for name in _remove_files(inner):
                    moved += 1
                    os.chmod(name, stat.S_IRWXU, dir_fd=inner)  # or it cannot be moved
                    os.rename(name, f"moved {moved} {os.urandom(8).hex()}", src_dir_fd=inner, dst_dir_fd=root)
            finally:
                os.close(inner)
            os.rmdir(folder, dir_fd=root)


def _remove_files(folder: int) -> list[str]:
    """Remove what is no folder; the names of those that are."""
    with os.scandir(folder) as entries:
        found = list(entries)
    for entry in found:
        if not entry.is_dir(follow_symlinks=False):
            os.unlink(entry.name, dir_fd=folder)
    return [entry.name for entry in found if entry.is_dir(follow_symlinks=False)]


__all__ = ["remove_tree"]
