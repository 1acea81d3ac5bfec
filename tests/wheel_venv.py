"""Build the wheel and install it, alone, into a clean virtual environment.

Used by `make lint` (types and import rules are checked on the installed wheel) and by the packaging tests:

    python tests/wheel_venv.py FOLDER      gives FOLDER/dist/*.whl and FOLDER/venv

Dependencies are not installed again: a .pth file lets the clean environment see the site-packages of the Python that
runs this. The editable install that may be there stays out of sight, as .pth files are not read recursively.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class WheelVenv:
    """Where the parts are."""

    sdist: Path
    wheel: Path
    python: Path
    site: Path

    def run(self, *args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        """Run the environment's Python away from the source tree."""
        return subprocess.run([str(self.python), *args], cwd=cwd, capture_output=True, text=True, check=False)


def rooms(root: Path = ROOT) -> dict[str, Path]:
    """Import name -> folder, of the packages that lie at the top of the repository."""
    tools = tomllib.loads((root / "pyproject.toml").read_text())["tool"]
    return {name: root / folder for name, folder in tools["setuptools"]["package-dir"].items()}


def make(folder: Path) -> WheelVenv:
    """Build from a copy, so that nothing left over from an earlier build in the tree can get into the wheel."""
    if folder.exists():
        shutil.rmtree(folder)
    source, dist = folder / "source", folder / "dist"
    for path in rooms().values():
        shutil.copytree(path, source / path.name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    _run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(dist), str(source))
    shutil.rmtree(source)
    (wheel,) = dist.glob("*.whl")
    (sdist,) = dist.glob("*.tar.gz")

    home = folder / "venv"
    venv.create(home, with_pip=False, symlinks=True)
    python = home / "bin" / "python"
    _run(sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", str(wheel))
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = home / "lib" / version / "site-packages"
    (site / "parent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return WheelVenv(sdist, wheel, python, site)


def _run(*command: str) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}")


if __name__ == "__main__":
    make(Path(sys.argv[1]))
