"""Module state on disk: JSON for text and numbers, safetensors for arrays and tensors, never pickle."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trace_core._codec import Lossy, decode, encode
from trace_core._lazy import require
from trace_core._values import is_ndarray, is_tensor
from trace_core.errors import MissingExtra, ParameterError, StateError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from os import PathLike

    from trace_core.parameter import Parameter

_FORMAT = "trace_core state"
_BESIDE = ".safetensors"


class _Buffer:
    """A tensor that belongs to the state and is no parameter."""

    def __init__(self, tensor: Any) -> None:
        self._tensor = tensor

    def check(self, value: Any) -> Any:
        """The value as a tensor. Raises ParameterError if it does not fit."""
        torch = require("torch", extra="torch")
        shape = tuple(self._tensor.shape)
        if not (is_tensor(value) or is_ndarray(value)) or tuple(value.shape) != shape:
            raise ParameterError(f"expected a tensor of shape {shape}, got {type(value).__name__}")
        return torch.as_tensor(value)

    def update(self, value: Any) -> None:
        """Copy the value in."""
        with require("torch", extra="torch").no_grad():
            self._tensor.copy_(value)


def load(
    parameters: Mapping[str, Parameter], buffers: Mapping[str, Any], state: Mapping[str, Any], strict: bool
) -> None:
    """See Module.load_state_dict."""
    places: dict[str, Parameter | _Buffer] = {**parameters, **{name: _Buffer(b) for name, b in buffers.items()}}
    problems = []
    if strict:
        problems += [f"unknown entry {name!r}" for name in state if name not in places]
        problems += [f"missing entry {name!r}" for name in places if name not in state]
    checked: dict[Parameter | _Buffer, Any] = {}
    for name, place in places.items():
        if name in state:
            try:
                checked[place] = place.check(state[name])
            except ParameterError as error:
                problems.append(f"entry {name!r}: {error}")
    if problems:
        raise StateError("the state does not fit, nothing was changed: " + "; ".join(problems))
    for place, value in checked.items():
        place.update(value)


def write(state: Mapping[str, Any], path: str | PathLike[str]) -> None:
    """Write a state; each file appears whole or not at all. Raises StateError naming what cannot be kept."""
    target = Path(path)
    if target.suffix == _BESIDE:
        raise StateError(
            f"{target}: arrays go to a {_BESIDE} file beside the state; give the state another ending, e.g. .json"
        )
    arrays = {name: value for name, value in state.items() if is_ndarray(value) or is_tensor(value)}
    plain, bad = {}, []
    for name, value in state.items():
        if name not in arrays:
            try:
                plain[name] = encode(value, exact=True)
            except Lossy as lossy:
                bad.append(f"{name!r} holds a {lossy}")
    if bad:
        raise StateError(f"these parameters hold values that cannot be kept as data: {'; '.join(bad)}")
    tensors = sorted(name for name, value in arrays.items() if is_tensor(value))
    data = {
        "format": _FORMAT,
        "version": 1,
        "values": plain,
        "arrays": sorted(arrays.keys() - set(tensors)),
        "tensors": tensors,
    }
    text = json.dumps(data, indent=2, allow_nan=False)
    if arrays:
        _write_arrays(arrays, target.with_suffix(_BESIDE))
    _replace(target, text.encode())


def _write_arrays(arrays: Mapping[str, Any], path: Path) -> None:
    try:
        if any(is_tensor(value) for value in arrays.values()):
            torch, library = require("torch", extra="torch"), require("safetensors.torch", extra="torch")
            data = library.save({n: torch.as_tensor(v).detach().cpu().contiguous().clone() for n, v in arrays.items()})
        else:
            import numpy

            library = require("safetensors.numpy", extra="torch")
            data = library.save({name: numpy.ascontiguousarray(value) for name, value in arrays.items()})
    except (KeyError, TypeError, ValueError) as error:
        raise StateError(f"arrays of these types cannot be kept ({', '.join(sorted(arrays))}): {error}") from error
    _replace(path, data)


def _replace(path: Path, data: bytes) -> None:
    scratch = path.with_name(f"{path.name}.tmp{os.getpid()}")
    try:
        scratch.write_bytes(data)
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def read(path: str | PathLike[str]) -> dict[str, Any]:
    """Read what ``write`` wrote. Raises StateError if the file is not such a state."""
    target = Path(path)
    try:
        data = json.loads(target.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise StateError(f"{target}: there is no such file") from error
    except ValueError as error:
        raise StateError(f"{target} is no saved state: {error}") from error
    if not isinstance(data, dict) or data.get("format") != _FORMAT:
        raise StateError(f"{target} is no saved state: expected format {_FORMAT!r}")
    try:
        state: dict[str, Any] = {str(name): decode(value) for name, value in data["values"].items()}
        arrays, tensors = list(data["arrays"]), list(data.get("tensors", ()))
    except (KeyError, TypeError, AttributeError) as error:
        raise StateError(f"{target} is damaged: {type(error).__name__}: {error}") from error
    if arrays or tensors:
        state.update(_read_arrays(target, arrays, tensors))
    return state


def _read_arrays(target: Path, arrays: list[str], tensors: list[str]) -> dict[str, Any]:
    beside = target.with_suffix(_BESIDE)
    if not beside.exists():
        raise StateError(f"{target} needs {beside.name} beside it, which is not there")
    try:
        if tensors:
            found = require("safetensors.torch", extra="torch").load_file(str(beside))
            found.update({name: found[name].numpy() for name in arrays})
        else:
            found = require("safetensors.numpy", extra="torch").load_file(str(beside))
        return {name: found[name] for name in [*arrays, *tensors]}
    except MissingExtra:
        raise
    except Exception as error:  # the library has exceptions of its own for damaged files
        raise StateError(f"{beside} is damaged or does not belong to {target.name}: {error}") from error
