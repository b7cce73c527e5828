"""The layers one behind another on the way to one end of the graph: depth is along these, and not along time."""

from collections.abc import Iterable, Iterator, Sequence

from evengrad.diagnose._abstract import Sign
from evengrad.nouns import LayerReading

Chain = tuple[LayerReading, ...]


def chains(layers: Sequence[LayerReading]) -> tuple[Chain, ...]:
    """Part the layers with weights into those that are judged together, each in the order of the forward pass.

    Each chain ends at a layer that no other one comes after. Where several come after one, the sum of their gradients
    arrives: it belongs to the chain of that which brings the largest, and so does what lies before it. A head whose
    loss has a small weight is thus a chain of its own, and the trunk belongs to the other head; branches that meet
    again are one chain. Layers outside of the graph, as frozen ones are, are put to the chain with the largest
    gradient.

    All layers with weights are one chain, in the order of the calls, where the graph is not known.
    """
    weighted = tuple(layer for layer in layers if layer.weighted)
    if any(layer.after is None and layer.grad_rms is not None for layer in weighted):
        return (weighted,)
    followers = _followers(layers)
    ends: dict[int, int] = {}
    for place in reversed(followers):
        behind = followers[place]
        best = max(behind, key=lambda one: (_size(layers[one]), one), default=None)
        ends[place] = place if best is None else ends[best]
    if not ends:
        return (weighted,)
    largest = ends[max(ends, key=lambda one: _size(layers[one]))]
    found: dict[int, list[LayerReading]] = {}
    for place, layer in enumerate(layers):
        if layer.weighted:
            found.setdefault(ends.get(place, largest), []).append(layer)
    return tuple(tuple(chain) for chain in found.values())


def worst(signs: Iterable[Sign | None]) -> Sign | None:
    """Choose the sign that speaks, then the largest; None where nothing could be judged."""
    return max((sign for sign in signs if sign is not None), key=lambda one: (one.speaks, one.decades), default=None)


def before(layers: Sequence[LayerReading], place: int) -> Chain:
    """List what comes before a layer: of the calls before it, those that lead to it where the graph is known."""
    earlier = tuple(layers[:place])
    if layers[place].after is None or any(layer.after is None for layer in earlier):
        return earlier
    ancestors = _ancestors(layers[: place + 1])[place]
    return tuple(layer for one, layer in enumerate(earlier) if ancestors >> one & 1)


def _followers(layers: Sequence[LayerReading]) -> dict[int, list[int]]:
    """For each weighted layer of the graph the next weighted ones, through all else; by their places."""
    followers: dict[int, list[int]] = {place: [] for place, layer in enumerate(layers) if _counts(layer)}
    weighted = sum(1 << place for place in followers)
    ancestors = _ancestors(layers)
    for place in followers:
        left = ancestors[place] & weighted
        while left:
            nearest = left.bit_length() - 1
            followers[nearest].append(place)
            left &= ~(ancestors[nearest] | 1 << nearest)
    return followers


def _counts(layer: LayerReading) -> bool:
    return layer.weighted and layer.after is not None


def _ancestors(layers: Sequence[LayerReading]) -> list[int]:
    """For each layer those before it, as bits; a name that is not of an earlier layer is passed over."""
    places: dict[str, int] = {}
    found: list[int] = []
    for place, layer in enumerate(layers):
        bits = 0
        for one in _places(layer, places):
            bits |= found[one] | 1 << one
        found.append(bits)
        places[layer.name] = place
    return found


def _places(layer: LayerReading, places: dict[str, int]) -> Iterator[int]:
    return (places[name] for name in layer.after or () if name in places)


def _size(layer: LayerReading) -> float:
    """Compare gradients: none is the smallest, and one that is not finite the largest."""
    norm = layer.grad_norm
    if norm is None:
        return -1.0
    return norm if norm < float("inf") else float("inf")
