"""Recurrent modules and unrolled cells, as profiles over time steps that compare with each other."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, isfinite
from statistics import median

from evengrad.diagnose._profile import NEARLY_NOTHING, decades_between, without_call
from evengrad.nouns import LayerReading, Reading

MODULES = frozenset({"RNN", "LSTM", "GRU"})
CELLS = frozenset({"RNNCell", "LSTMCell", "GRUCell"})
GATED = frozenset({"LSTM", "GRU", "LSTMCell", "GRUCell"})
GATES = frozenset({"sigmoid", "hardsigmoid"})
# Over fewer steps a difference comes from what the steps are and not from time.
FEWEST_STEPS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class TimeProfile:
    """One recurrent module, or one module that is called at every time step.

    Args:
        name: The module.
        kind: Its class.
        grads: Gradient rms at each time step, earliest first: at the input of a recurrent module, at the output of a
            cell. Steps that no path leads to are left out.
        activations: Rms of the output at each call; empty for recurrent modules, which give all steps at once.
        known: Whether its class says that the calls are time steps; otherwise it is any module with weights that is
            called often, and only the shape of the profile can tell.
        gated: Whether it has gates that open during training, or may have.
    """

    name: str
    kind: str
    grads: tuple[float, ...]
    activations: tuple[float, ...] = ()
    known: bool = True
    gated: bool = False


def time_profiles(reading: Reading) -> tuple[TimeProfile, ...]:
    """List what has a profile over at least eight time steps; modules of unknown kind only where no other has one.

    A linear layer that is called in the loop of a recurrent cell has the profile of that cell, so it says nothing of
    its own.
    """
    calls: dict[str, list[LayerReading]] = {}
    for layer in reading.layers:
        if layer.weighted or layer.nonlinearity is not None or layer.time_grad_rms:
            calls.setdefault(without_call(layer.name), []).append(layer)
    known = [one for name, layers in calls.items() for one in _of_known_kind(name, layers)]
    if known:
        return tuple(one for one in known if _can_be_judged(one))
    many = {name: layers for name, layers in calls.items() if len(layers) >= FEWEST_STEPS}
    functions = {layers[0].nonlinearity for layers in many.values()} - {None}
    gated = bool(functions & GATES) or not functions
    found = [
        TimeProfile(
            name=name, kind=layers[0].kind, grads=_grads(layers), activations=_sizes(layers), known=False, gated=gated
        )
        for name, layers in many.items()
        if layers[0].weighted
    ]
    return tuple(one for one in found if _can_be_judged(one))


def _can_be_judged(one: TimeProfile) -> bool:
    return len(one.grads) >= FEWEST_STEPS and all(isfinite(size) for size in (*one.grads, *one.activations))


def _of_known_kind(name: str, calls: list[LayerReading]) -> list[TimeProfile]:
    kind = calls[0].kind
    gated = kind in GATED
    if kind in CELLS and len(calls) >= FEWEST_STEPS:
        return [TimeProfile(name=name, kind=kind, grads=_grads(calls), activations=_sizes(calls), gated=gated)]
    if len(calls) >= FEWEST_STEPS and all(len(layer.time_grad_rms) == 1 for layer in calls):
        # a recurrent module that the model calls with one time step at a time, as decoders do
        grads = reached(tuple(layer.time_grad_rms[0] for layer in calls))
        return [TimeProfile(name=name, kind=kind, grads=grads, activations=_sizes(calls), gated=gated)]
    return [
        TimeProfile(name=layer.name, kind=kind, grads=reached(layer.time_grad_rms), gated=gated)
        for layer in calls
        if layer.time_grad_rms
    ]


def _grads(calls: list[LayerReading]) -> tuple[float, ...]:
    return reached(tuple(layer.grad_rms or 0.0 for layer in calls))


def _sizes(calls: list[LayerReading]) -> tuple[float, ...]:
    return tuple(layer.activation_rms for layer in calls)


def reached(profile: tuple[float, ...]) -> tuple[float, ...]:
    """Drop the time steps that no path leads to: exact zeros, unless the gradient was vanishing next to them.

    Example:
        >>> reached((1e-3, 1e-2, 1e-1, 0.0, 0.0))
        (0.001, 0.01, 0.1)
        >>> reached((0.0, 1e-42, 1e-20, 1e-1))
        (0.0, 1e-42, 1e-20, 0.1)
    """
    seen = [index for index, value in enumerate(profile) if value != 0.0]
    if not seen:
        return ()
    first, last = seen[0], seen[-1]
    start = 0 if profile[first] < NEARLY_NOTHING else first
    end = len(profile) if profile[last] < NEARLY_NOTHING else last + 1
    return profile[start:end]


def drop_of(profile: Sequence[float]) -> float:
    """Measure in decades how much less the worst-reached tenth of the steps gets than the best-reached step.

    Example:
        >>> drop_of([1e-6, 1e-4, 1e-2, 1.0])
        6.0
    """
    worst_tenth = sorted(profile)[: ceil(len(profile) / 10)]
    return decades_between(max(worst_tenth), max(profile))


def growth_of(profile: Sequence[float]) -> float:
    """Measure in decades how much more an early step gets than the best of the last tenth of the steps.

    Zero where a single step makes up more than half of it: that is a step out of line and not growth over time.

    Example:
        >>> growth_of([1e4, 1e3, 1e2, 10.0, 1.0, 1.0, 1.0])
        4.0
        >>> growth_of([1.0, 1.0, 1e6, 1.0, 1.0, 1.0])
        0.0
    """
    last = max(profile[-max(3, ceil(len(profile) / 10)) :])
    if last <= 0.0:
        return 0.0
    growth = decades_between(last, max(profile))
    return growth if gradual(profile, growth) else 0.0


def gradual(profile: Sequence[float], decades: float) -> bool:
    """Tell whether no step from one time to the next makes up more than half of a change over all of them."""
    jumps = [abs(decades_between(*sorted(pair))) for pair in pairwise(profile) if min(pair) > 0.0]
    return 2 * max(jumps, default=0.0) <= decades


def falls_towards_the_start(profile: Sequence[float]) -> bool:
    """Tell whether a profile has the shape of time: less and less towards the first calls, and no leaps.

    Example:
        >>> falls_towards_the_start([10.0**k for k in range(-12, 0)])
        True
        >>> falls_towards_the_start([1e-12, 1.0, 1e-3, 1e-9, 1e-1, 1e-12, 1.0, 1e-6, 1e-7])
        False
    """
    third = len(profile) // 3
    early, middle, late = (median(part) for part in (profile[:third], profile[third:-third], profile[-third:]))
    return early < middle < late and gradual(profile, decades_between(min(profile), max(profile)))
