"""Places for the boxes of a layered drawing: sources above, output below."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

_SWEEPS = 6


class Layout(NamedTuple):
    """Where everything lies, in units of one box: x is a centre within [0, width], y the layer.

    Attributes:
        places: (x, layer) of each node.
        routes: the points each link passes, its ends included.
        width: boxes beside one another in the widest layer.
        height: number of layers.
    """

    places: list[tuple[float, int]]
    routes: list[list[tuple[float, int]]]
    width: float
    height: int


def layered(count: int, links: Sequence[tuple[int, int]]) -> Layout:
    """Lay out nodes 0 .. count - 1, given in topological order, with links (source, target), source before target.

    Each node stands one layer above the nearest node that uses it. Links over several layers get places of their own
    in between, so that they run around boxes. Crossings are reduced by sweeps that order each layer by the mean place
    of its neighbours. Source: Sugiyama, Tagawa, Toda (1981), the usual steps in their simplest form.
    """
    depth = [0] * count
    for source, target in sorted(links, key=lambda link: link[1], reverse=True):
        depth[source] = max(depth[source], depth[target] + 1)
    height = max(depth, default=0) + 1
    layer_of = [height - 1 - d for d in depth]
    # Stand-ins for the links that pass a layer; narrower than boxes.
    chains: list[list[int]] = []
    widths = [1.0] * count
    for source, target in links:
        chain = [source]
        for level in range(layer_of[source] + 1, layer_of[target]):
            chain.append(len(layer_of))
            layer_of.append(level)
            widths.append(0.25)
        chain.append(target)
        chains.append(chain)
    layers: list[list[int]] = [[] for _ in range(height)]
    for item, level in enumerate(layer_of):
        layers[level].append(item)
    above: list[list[int]] = [[] for _ in layer_of]
    below: list[list[int]] = [[] for _ in layer_of]
    for chain in chains:
        for upper, lower in pairwise(chain):
            above[lower].append(upper)
            below[upper].append(lower)
    x = [0.0] * len(layer_of)
    for layer in layers:
        _pack(layer, x, widths, [float(position) for position in range(len(layer))])
    for sweep in range(_SWEEPS):
        order, neighbours = (layers, above) if sweep % 2 == 0 else (layers[::-1], below)
        for layer in order:
            wanted = {
                item: sum(x[n] for n in neighbours[item]) / len(neighbours[item]) for item in layer if neighbours[item]
            }
            layer.sort(key=lambda item: wanted.get(item, x[item]))
            _pack(layer, x, widths, [wanted.get(item, x[item]) for item in layer])
    left = min((x[i] - widths[i] / 2 for i in range(len(x))), default=0.0)
    right = max((x[i] + widths[i] / 2 for i in range(len(x))), default=1.0)
    places = [(x[item] - left, layer_of[item]) for item in range(count)]
    routes = [[(x[item] - left, layer_of[item]) for item in chain] for chain in chains]
    return Layout(places, routes, right - left, height)


def _pack(layer: list[int], x: list[float], widths: list[float], wanted: list[float]) -> None:
    """Place the items in order, each as near to its wanted place as the room between its neighbours allows."""
    blocks: list[tuple[float, float, list[int]]] = []  # (centre of the first item, sum of wishes for it, items)
    for item, wish in zip(layer, wanted, strict=True):
        start, wishes, items = wish, wish, [item]
        while blocks and blocks[-1][0] + _span(blocks[-1][2], widths) + (widths[items[0]]) / 2 > start:
            _, before, earlier = blocks.pop()
            offset = _span(earlier, widths) + widths[items[0]] / 2
            wishes = before + wishes - offset * len(items)
            items = earlier + items
            start = wishes / len(items)
        blocks.append((start, wishes, items))
    for start, _, items in blocks:
        position = start
        for number, item in enumerate(items):
            if number:
                position += (widths[items[number - 1]] + widths[item]) / 2
            x[item] = position


def _span(items: list[int], widths: list[float]) -> float:
    """From the centre of the first item to the right edge of the last."""
    return sum(widths[item] for item in items) - widths[items[0]] / 2
