"""What a user gets: the wheel, installed into a clean environment.

The environment holds the wheel alone; its dependencies come from the environment of the test run (see wheel_venv.py).
"""

from __future__ import annotations

import json
import tomllib
import zipfile
from pathlib import Path

import pytest
from wheel_venv import ROOT, WheelVenv, rooms

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

# Import names of everything an extra brings in directly.
OF_EXTRAS = ["litellm", "torch", "numpy", "safetensors", "highspy", "xllamacpp", "ray", "distributed", "dask", "mlflow"]
OF_EXTRAS += ["opentelemetry", "pytorch_optimizer"]

# Hides modules as if they were not installed, then imports every module of the package.
IMPORT_ALL = """
import importlib, json, pkgutil, sys

sys.modules.update(dict.fromkeys(json.loads(sys.argv[1])))  # None there: as if not installed
import trace_core
failed, names = {}, ["trace_core"]
for info in pkgutil.walk_packages(trace_core.__path__, "trace_core.", onerror=lambda name: None):
    names.append(info.name)
    try:
        importlib.import_module(info.name)
    except BaseException as error:
        failed[info.name] = f"{type(error).__name__}: {error}"
json.dump({"file": trace_core.__file__, "names": names, "failed": failed}, sys.stdout)
"""


def shipped_files() -> set[str]:
    """Every file of the rooms, by its place under the import root."""
    found = set()
    for name, folder in rooms().items():
        for path in folder.rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                found.add(f"{name.replace('.', '/')}/{path.relative_to(folder).as_posix()}")
    return found


def import_everything(venv: WheelVenv, cwd: Path, hidden: list[str]) -> dict[str, object]:
    done = venv.run("-c", IMPORT_ALL, json.dumps(hidden), cwd=cwd)
    assert done.returncode == 0, done.stderr
    report: dict[str, object] = json.loads(done.stdout)
    return report


def test_listed_packages_are_the_folders_of_the_tree() -> None:
    found = set()
    for name, folder in rooms().items():
        for init in folder.rglob("__init__.py"):
            found.add(".".join([name, *init.parent.relative_to(folder).parts]))
    assert sorted(PROJECT["tool"]["setuptools"]["packages"]) == sorted(found)


def test_no_module_lies_in_a_folder_that_is_no_package() -> None:
    stray = [
        path.relative_to(ROOT).as_posix()
        for folder in rooms().values()
        for path in folder.rglob("*.py")
        if "templates" not in path.parts and not (path.parent / "__init__.py").exists()
    ]
    assert stray == [], "these modules would be missing from the wheel: add an __init__.py and list the package"


def test_wheel_holds_every_file_of_the_rooms_and_nothing_else(wheel_venv: WheelVenv) -> None:
    with zipfile.ZipFile(wheel_venv.wheel) as archive:
        packed = {name for name in archive.namelist() if not name.partition("/")[0].endswith(".dist-info")}
    assert packed == shipped_files()
    assert "trace_core/py.typed" in packed


def test_only_the_one_root_lands_in_site_packages(wheel_venv: WheelVenv) -> None:
    borrowed = "parent.pth"  # put there by wheel_venv.py, to reach the dependencies
    landed = {path.name for path in wheel_venv.site.iterdir()} - {borrowed}
    assert landed == {"trace_core", f"trace_core-{_version()}.dist-info"}


def test_metadata(wheel_venv: WheelVenv) -> None:
    (info,) = wheel_venv.site.glob("trace_core-*.dist-info")
    metadata = (info / "METADATA").read_text()
    assert f"Version: {_version()}\n" in metadata
    assert "License-Expression: MIT\n" in metadata
    assert "Requires-Python: <3.14,>=3.11\n" in metadata
    extras = {line.split(": ")[1] for line in metadata.splitlines() if line.startswith("Provides-Extra: ")}
    assert extras == {
        "litellm",
        "torch",
        "optim",
        "examples",
        "milp",
        "local",
        "monty",
        "ray",
        "dask",
        "mlflow",
        "otel",
        "pandas",
        "all",
        "dev",
        "bench",
    }
    assert (info / "licenses" / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()


def test_version_stands_in_one_place(wheel_venv: WheelVenv, tmp_path: Path) -> None:
    assert "version" in PROJECT["project"]["dynamic"]
    done = wheel_venv.run("-c", "import trace_core; print(trace_core.__version__)", cwd=tmp_path)
    assert done.stdout.strip() == _version(), done.stderr


def test_every_module_imports_from_the_wheel(wheel_venv: WheelVenv, tmp_path: Path) -> None:
    report = import_everything(wheel_venv, tmp_path, hidden=[])
    assert Path(str(report["file"])).is_relative_to(wheel_venv.site)
    assert report["failed"] == {}
    expected = {name[: -len(".py")].replace("/", ".") for name in shipped_files() if name.endswith(".py")}
    expected = {name.removesuffix(".__init__") for name in expected if not name.endswith(".__main__")}
    assert expected <= set(report["names"])  # type: ignore[call-overload]


def test_every_module_imports_without_any_extra(wheel_venv: WheelVenv, tmp_path: Path) -> None:
    report = import_everything(wheel_venv, tmp_path, hidden=OF_EXTRAS)
    assert report["failed"] == {}


def test_a_missing_extra_is_named_at_use(wheel_venv: WheelVenv, tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(b"GGUF")
    use = IMPORT_ALL + (
        "\nfrom trace_core import MissingExtra\nfrom trace_core.integrations.llm import resolve_llm\n"
        f"for choice in ('litellm/some-provider/some-model', 'local:{model}'):\n"
        "    try:\n        resolve_llm(choice).complete([{'role': 'user', 'content': 'hi'}])\n"
        "    except MissingExtra as error:\n        sys.stdout.write('\\n' + str(error))\n"
    )
    done = wheel_venv.run("-c", use, json.dumps(OF_EXTRAS), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "pip install 'trace_core[litellm]'" in done.stdout
    assert "pip install 'trace_core[local]'" in done.stdout


def test_entry_point_of_the_code_runner_loads(wheel_venv: WheelVenv, tmp_path: Path) -> None:
    load = (
        "from importlib.metadata import entry_points\n"
        "(found,) = entry_points(group='trace_core.code_runner', name='default')\n"
        "print(callable(found.load()().call))"
    )
    done = wheel_venv.run("-c", load, cwd=tmp_path)
    assert done.stdout == "True\n", done.stderr


def test_console_script_starts(wheel_venv: WheelVenv, tmp_path: Path) -> None:
    script = wheel_venv.python.parent / "trace-core"
    done = wheel_venv.run(str(script), "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "demo" in done.stdout


@pytest.mark.parametrize(
    "extra", ["litellm", "torch", "optim", "examples", "milp", "local", "ray", "dask", "mlflow", "otel"]
)
def test_all_means_every_extra_for_users(extra: str) -> None:
    (everything,) = PROJECT["project"]["optional-dependencies"]["all"]
    assert extra in everything.partition("[")[2].rstrip("]").split(",")


def test_constraints_are_exact_and_cover_the_direct_dependencies() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert all(line.count("==") == 1 and "," not in line for line in lines)
    pinned = {line.partition("==")[0] for line in lines}
    groups = [PROJECT["project"]["dependencies"], *PROJECT["project"]["optional-dependencies"].values()]
    direct = {_name(requirement) for group in groups for requirement in group} - {"trace-core"}
    assert direct <= pinned


def _name(requirement: str) -> str:
    name = requirement
    for stop in "<>=!~[; ":
        name = name.partition(stop)[0]
    return name.lower().replace("_", "-")


def _version() -> str:
    line = (ROOT / "trace_core" / "_version.py").read_text()
    return line.partition('"')[2].partition('"')[0]
