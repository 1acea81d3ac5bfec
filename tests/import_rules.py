"""Check the import contracts of a pyproject.toml on the `trace_core` that this Python imports.

    python tests/import_rules.py pyproject.toml

import-linter's own command puts the current folder first on the path, where the source tree would hide the wheel; so
run this with the environment that has the wheel, away from the tree. Exit status 1 if a contract is broken.
"""

from __future__ import annotations

import sys

from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports


def main(config: str) -> int:
    """The exit status. import-linter writes its report to stdout."""
    return int(lint_imports(config_filename=config, no_cache=True, no_logo=True) != EXIT_STATUS_SUCCESS)


if __name__ == "__main__":
    sys.path.pop(0)  # the folder of this script
    sys.exit(main(sys.argv[1]))
