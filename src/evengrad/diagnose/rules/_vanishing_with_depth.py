"""EG101: the gradient shrinks on its way to the first layers."""

from collections.abc import Mapping
from itertools import takewhile
from math import ceil
from typing import ClassVar, final

from evengrad.diagnose._abstract import AbstractRule, Sign, Tells
from evengrad.diagnose._chains import Chain, chains, worst
from evengrad.diagnose._profile import (
    WIDEST_DECADES,
    Stop,
    best_of_modules,
    by_module,
    decades_between,
    finite_readings,
    stops,
    weighted_layers,
)
from evengrad.diagnose._proposals import FRESH_WEIGHTS, NORMS_AND_SHORTCUTS, cure
from evengrad.nouns import Cure, Evidence, Reading, Record

# Measured by benchmarks/thresholds.py: deep sigmoid, tanh and ReLU networks on digits with a drop of 3 decades or more
# do not reach 90 % of the shallow network's accuracy, neither with SGD nor with Adam; docs/decisions/0005.
THRESHOLD_DECADES = 3.0
FEWEST_LAYERS = 4


@final
class VanishingWithDepth(AbstractRule):
    """Vanishing with depth: the first layers get almost no gradient.

    Sees:
        The norm of the loss gradient at the output of each weighted layer, from the last layer back to the first.
        The rule speaks when even the best-reached layer of the first quarter gets 1000 times less (3 decades) than
        the layers next to the loss. Since the best-reached layer counts, a shortcut that carries the gradient to the
        front keeps the rule silent. Where activations have shrunk by as much and are exactly zero behind, so that
        rectifiers give no gradient at all, the rule speaks too.

    Hurts:
        All layers share one learning rate. A layer whose gradient is 1000 times smaller makes in a thousand steps
        what the last layer makes in one. Adaptive optimizers rescale each gradient, but not below their epsilon, and
        what they rescale is then mostly the noise of the batch.

    Cure:
        Weights scaled for the non-linearity (Reinitialize), a non-linearity that keeps its slope (SwapActivation),
        normalisation between the layers (AddNormalization), shortcuts around them (AddResidual).

    False alarms:
        Networks of fewer than four weighted layers are not judged. Layers are compared along one way of the graph only:
        of two heads, two towers or two calls of the model each is judged by itself, whatever the weight of its loss. A
        side branch at the front whose gate starts at zero gets exactly no gradient and is left out of the profile. A
        layer that is called many times, such as a cell in a loop over time steps, counts once, by the call that is
        reached best: its weights learn from that one. A network that has converged has small gradients everywhere: the
        profile is relative, so that alone does not make the rule speak.

    Source:
        Hochreiter 1991, diploma thesis (in German); Bengio, Simard and Frasconi 1994, doi:10.1109/72.279181;
        Glorot and Bengio 2010, section 4.
    """

    code: ClassVar[str] = "EG101"
    symptom: ClassVar[str] = "vanishing with depth"
    source: ClassVar[str] = "Glorot and Bengio 2010, Understanding the difficulty of training deep feedforward networks"
    family: ClassVar[str] = "vanishing-depth"
    tells: ClassVar[Tells] = "harm"

    def sign(self, reading: Reading, record: Record) -> Sign | None:
        """Compare the best-reached layer of the first quarter of each chain with the layers next to the loss."""
        if not finite_readings(reading.layers):
            return None
        best = best_of_modules(reading.layers)
        return worst(_judged(chain, best) for chain in chains(reading.layers))

    def cures(self) -> tuple[Cure, ...]:
        """Propose a smaller change of the weights first, then of the functions, then of the structure."""
        return (
            *FRESH_WEIGHTS,
            cure("SwapActivation", to="relu"),
            cure("SwapActivation", to="tanh"),
            cure("SwapActivation", to="selu"),
            *NORMS_AND_SHORTCUTS,
        )


def _judged(chain: Chain, best: Mapping[str, float]) -> Sign | None:
    """Judge one chain; a module that is called in others too learns from the call that is reached best."""
    path = by_module(stops(chain))
    if len(path) < FEWEST_LAYERS:
        return _faded(weighted_layers(chain))
    at_loss = max(stop.grad_norm for stop in path[-3:])
    if at_loss == 0.0:
        return None
    drop = decades_between(max(best[stop.name] for stop in path[: ceil(len(path) / 4)]), at_loss)
    if drop < THRESHOLD_DECADES:
        return Sign(decades=max(drop, 0.0))
    starved = list(takewhile(lambda stop: decades_between(best[stop.name], at_loss) >= THRESHOLD_DECADES, path))
    first, last = path[0], path[-1]
    total = decades_between(first.grad_norm, at_loss)
    return Sign(
        decades=drop,
        speaks=True,
        where=tuple(stop.name for stop in starved),
        message=(
            f"on its way back from `{last.name}` to `{first.name}` the gradient shrinks by {total:.1f} decades "
            f"({at_loss:.1e} to {first.grad_norm:.1e}), {total / (len(path) - 1):.2f} per layer; "
            f"{len(starved)} of {len(path)} weighted layers cannot learn"
        ),
        evidence=(
            Evidence(name=f"gradient norm at the output of {last.name}", value=last.grad_norm),
            Evidence(name=f"gradient norm at the output of {first.name}", value=first.grad_norm),
            Evidence(name="drop to the best-reached layer of the first quarter", value=drop, unit="decades"),
        ),
    )


def _faded(path: tuple[Stop, ...]) -> Sign | None:
    """Judge a forward that has underflowed: where activations are exactly zero, rectifiers give no gradient at all.

    That leaves too few layers for a profile of the gradient. Half a judgement: it can accuse, but not acquit. It
    accuses only where the activations had shrunk by the threshold before they were zero for good, so that no branch
    that starts at zero counts.
    """
    alive = list(takewhile(lambda stop: stop.activation_rms > 0.0, path))
    silent = list(takewhile(lambda stop: stop.activation_rms == 0.0, path[len(alive) :]))
    if len(path) < FEWEST_LAYERS or not alive or len(silent) < 2:
        return None
    first, last = alive[0], alive[-1]
    drop = decades_between(last.activation_rms, first.activation_rms)
    if drop < THRESHOLD_DECADES:
        return None
    return Sign(
        decades=WIDEST_DECADES,
        speaks=True,
        where=tuple(stop.name for stop in path[: len(alive) + 1]),
        message=(
            f"the activations shrink by {drop:.1f} decades from `{first.name}` ({first.activation_rms:.1e}) to "
            f"`{last.name}` ({last.activation_rms:.1e}) and are exactly zero behind it, so that no gradient comes back"
        ),
        evidence=(
            Evidence(name=f"activation rms of {first.name}", value=first.activation_rms),
            Evidence(name=f"activation rms of {last.name}", value=last.activation_rms),
            Evidence(name="weighted layers whose output is exactly zero", value=float(len(silent))),
        ),
    )
