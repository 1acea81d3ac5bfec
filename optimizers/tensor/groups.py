"""From parameters as users give them to the named groups a torch optimizer takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from trace_core.names import unique_names
from trace_core.nodes.tensor import ModuleNode, TensorParameter
from trace_core.optimizers.base import OptimizerError
from trace_core.parameter import Parameter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence


class Group(NamedTuple):
    """Parameters with the options that hold for them only."""

    parameters: list[TensorParameter]
    options: dict[str, Any]


def groups_from(parameters: Any) -> tuple[dict[TensorParameter, str], list[Group]]:
    """(parameter -> dotted name, groups).

    ``parameters`` is what ``Optimizer`` takes, or a list of it in which dicts ``{"params": ..., option: value}`` are
    groups with options of their own. What stands beside such dicts makes one more group, without options.

    Raises OptimizerError for anything but tensor parameters, for a parameter that is in two groups, for a tensor that
    belongs to two parameters.
    """
    plain: list[tuple[str | None, Any]] = []
    groups: list[tuple[list[tuple[str | None, Any]], dict[str, Any]]] = [(plain, {})]
    single = hasattr(parameters, "named_parameters") or hasattr(parameters, "items")
    for item in [parameters] if single else parameters:
        if not single and isinstance(item, dict):
            if "params" not in item:
                raise OptimizerError(f"a parameter group needs a key 'params', got {sorted(map(str, item))}")
            options = {key: value for key, value in item.items() if key != "params"}
            inside = item["params"]
            groups.append((list(_pairs([inside] if isinstance(inside, Parameter) else inside)), options))
        else:
            plain.extend(_pairs(item if single or hasattr(item, "named_parameters") else [item]))
    named = _named(pair for pairs, _ in groups for pair in pairs)
    found: list[Group] = []
    placed: set[TensorParameter] = set()
    for pairs, options in groups:
        members = list(dict.fromkeys(parameter for _, parameter in pairs))
        for twice in placed.intersection(members):
            raise OptimizerError(f"parameter {named[twice]!r} is in two groups: each parameter belongs to one")
        placed.update(members)
        if members:
            found.append(Group(members, options))
    return named, found


def _pairs(source: Any) -> Iterator[tuple[str | None, Any]]:
    if hasattr(source, "named_parameters"):
        yield from source.named_parameters()
        return
    for item in source.items() if hasattr(source, "items") else source:
        if hasattr(item, "named_parameters"):
            yield from item.named_parameters()
        else:
            yield item if isinstance(item, tuple) else (None, item)


def _named(pairs: Iterator[tuple[str | None, Any]]) -> dict[TensorParameter, str]:
    """Each parameter once, under its path, made unique."""
    given: dict[TensorParameter, str | None] = {}
    for name, parameter in pairs:
        if not isinstance(parameter, TensorParameter):
            what = f"{parameter.kind} parameter" if isinstance(parameter, Parameter) else type(parameter).__name__
            called = name or getattr(parameter, "name", None)
            raise OptimizerError(
                f"expected tensor parameters, got a {what}{f' ({called})' if called else ''}: make them with "
                "TensorParameter or module_node, give others to an optimizer of their kind, or use Mixed"
            )
        given.setdefault(parameter, name)
    tensors: dict[int, TensorParameter] = {}
    for parameter in given:
        other = tensors.setdefault(id(parameter.tensor), parameter)
        if other is not parameter:
            raise OptimizerError(
                f"parameters {other.name!r} and {parameter.name!r} share one tensor: make one module_node of a "
                "module and give it once"
            )
    unnamed = unique_names(given)
    names: dict[TensorParameter, str] = {}
    taken: set[str] = set()
    for parameter, name in given.items():
        wanted = name if name is not None else unnamed[parameter]
        candidate, count = wanted, 1
        while candidate in taken:
            count += 1
            candidate = f"{wanted}_{count}"
        taken.add(candidate)
        names[parameter] = candidate
    return names


def made_over(
    given: Any,
    paths: Mapping[TensorParameter, str],
    groups: Sequence[Group],
    optimizer: Callable[..., Any],
    options: Mapping[str, Any],
) -> Any:
    """The torch optimizer over the trained tensors of the groups, by name; for FRUGAL with its defaults by module.

    Raises OptimizerError if every parameter is frozen.
    """
    made: list[dict[str, Any]] = []
    for group in groups:
        trained = [(paths[p], p.tensor) for p in group.parameters if p.tensor.requires_grad]
        if trained:
            made.append({"params": trained, **group.options})
    if not made:
        raise OptimizerError(
            f"every parameter is frozen (requires_grad=False): {', '.join(paths.values())}. "
            "Make one trainable before the optimizer is made"
        )
    bound = getattr(optimizer, "keywords", {})  # of a functools.partial
    if _is_frugal(optimizer) and not any("project" in said for said in (options, bound, *made)):
        options = {**options, "project": hidden_weights(given)}
    flat = len(made) == 1 and set(made[0]) == {"params"}
    return optimizer(made[0]["params"] if flat else made, **options)


def _is_frugal(optimizer: Any) -> bool:
    from trace_core.optimizers.tensor.frugal import Frugal

    made = getattr(optimizer, "func", optimizer)
    return isinstance(made, type) and issubclass(made, Frugal)


def hidden_weights(parameters: Any) -> Callable[[str, Any], bool]:
    """Which tensors FRUGAL projects: by their modules where a ``module_node`` has them, else by their names."""
    from trace_core.optimizers.tensor.frugal import default_project, is_projected_name

    known: dict[int, bool] = {}
    for found in module_nodes(parameters):
        choose = default_project(found.module)
        for prefix, module in found.module.named_modules():
            for name, tensor in module.named_parameters(prefix=prefix, recurse=False):
                known.setdefault(id(tensor), choose(name, module, tensor))

    def project(name: str, tensor: Any) -> bool:
        return known[id(tensor)] if id(tensor) in known else is_projected_name(name, tensor)

    return project


def module_nodes(source: Any) -> list[ModuleNode]:
    """The module nodes in parameters as given: themselves, in lists, dicts and groups, in attributes of Modules."""
    found: dict[int, ModuleNode] = {}
    seen: set[int] = set()
    todo = [source]
    while todo:
        item = todo.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, ModuleNode):
            found[id(item)] = item
        elif isinstance(item, dict):
            todo.extend(item.values())
        elif isinstance(item, list | tuple):
            todo.extend(item)
        elif getattr(type(item), "__trace_core_module__", False):
            todo.extend(getattr(item, "__dict__", {}).values())
    return list(found.values())
