"""EG303: the units of a layer are all the same, and stay so."""

from collections.abc import Sequence
from math import isfinite
from typing import ClassVar, final

from evengrad.diagnose._abstract import AbstractRule, Sign, Tells
from evengrad.diagnose._profile import finite_readings
from evengrad.diagnose._proposals import FRESH_WEIGHTS
from evengrad.diagnose.rules._dead_units import MOST_DECADES
from evengrad.nouns import Cure, Evidence, ParameterReading, Reading, Record

# Units that differ by 1 % are worth one unit to within 1 %; rows drawn at random have a spread near 1, whatever their
# scale. Rounding (2^-8 in bfloat16) stays below.
SAME = 0.01
# Equal weights that are not zero, in several layers, are no accident: biases that differ then make the gradients differ
# a little, while what they have in common, three quarters of their squares at least, keeps the units together.
ALIKE = 0.5
EQUAL = 1e-6


@final
class CollapsedUnits(AbstractRule):
    """Collapsed units: the units of a layer have the same weights and the same gradient.

    Sees:
        For each weight matrix of two units or more how much its rows differ, and how much the rows of its gradient do,
        relative to their norms. The rule speaks where neither differ by more than 1 % (the gradients by a half where
        several layers have equal weights that are not zero); and where the rows do not differ and the gradient is
        exactly zero, if no matrix of the model has rows that differ (all zeros, say), or if biases alone get one.

    Hurts:
        Units with the same weights compute the same, get the same gradient, and are the same after every step: a
        layer of any width is worth one unit. From zeros not even that one learns, because what a zero layer passes on
        in either direction is zero.

    Cure:
        Weights drawn at random (Reinitialize). Biases may be zero.

    False alarms:
        Weights that start at zero on purpose get gradients whose rows differ: the last layer of a residual branch, a
        LoRA matrix, an output head. What stands before them gets none at the first step, but has random weights or
        will get one once they have moved. Layers of one unit, embeddings and biases are not judged.

    Source:
        Goodfellow, Bengio and Courville 2016, Deep Learning, section 8.4: the initial parameters need to break the
        symmetry between units.
    """

    code: ClassVar[str] = "EG303"
    symptom: ClassVar[str] = "collapsed units"
    source: ClassVar[str] = "Goodfellow, Bengio and Courville 2016, Deep Learning, section 8.4"
    family: ClassVar[str] = "collapsed"
    tells: ClassVar[Tells] = "harm"

    def sign(self, reading: Reading, record: Record) -> Sign | None:
        """Judge every matrix of two units or more that a gradient could reach."""
        judged = [one for one in reading.weights if one.fan_in > 0 and None not in (one.row_spread, one.grad_rms)]
        if not judged or not _is_finite(reading):
            return None
        last = next(one.name for one in reversed(reading.weights) if one.fan_in > 0)
        hidden = [one for one in judged if one.name != last]  # several outputs, such as critics, may be the same
        named = {one.name for one in (*_together(hidden), *_stuck(judged, reading, record))}
        found = [one for one in judged if one.name in named]
        return _told(found, len(judged)) if found else Sign(decades=0.0)

    def cures(self) -> tuple[Cure, ...]:
        """Propose random weights."""
        return FRESH_WEIGHTS


def _is_finite(reading: Reading) -> bool:
    """Tell whether the weights can be compared: numbers that are not finite are left out of what was measured."""
    known = [number for number in (reading.loss, reading.total_norm) if number is not None]
    return all(isfinite(number) for number in known) and finite_readings(reading.layers)


def _together(hidden: Sequence[ParameterReading]) -> list[ParameterReading]:
    """List the matrices whose units are the same and are moved alike."""
    constant = [one for one in hidden if one.weight_rms > 0.0 and (one.row_spread or 0.0) <= EQUAL]
    most = ALIKE if len(constant) > 1 else SAME
    return [one for one in hidden if _same_rows(one) and _same_gradient(one, most)]


def _stuck(judged: Sequence[ParameterReading], reading: Reading, record: Record) -> list[ParameterReading]:
    """List the matrices of equal units without a gradient, where it is sure that none will come.

    It will not come to a model of which every matrix has equal units, unless some of it is frozen and out of sight; nor
    where the gradient reaches biases only. A zero weight before another zero weight, as in front of a head that starts
    at zero, gets its gradient one step later.
    """
    starved = [one for one in judged if _same_rows(one) and _starved(one)]
    alone = record.setup is None or not record.setup.frozen
    no_matrix = all(_starved(one) for one in judged) and any(norm > 0.0 for norm in reading.grad_norms)
    if (alone and all(_same_rows(one) for one in judged)) or (no_matrix and len(starved) > 1):
        return starved
    return []


def _same_rows(weight: ParameterReading) -> bool:
    return weight.row_spread is not None and weight.row_spread <= SAME


def _starved(weight: ParameterReading) -> bool:
    return weight.grad_rms == 0.0


def _same_gradient(weight: ParameterReading, most: float) -> bool:
    spread = weight.grad_row_spread
    return bool(weight.grad_rms) and spread is not None and spread <= most


def _told(found: Sequence[ParameterReading], count: int) -> Sign:
    first = found[0]
    how = _looks_like(first)
    gradient = "no gradient" if _starved(first) else "the same gradient, or nearly"
    return Sign(
        decades=MOST_DECADES,
        speaks=True,
        where=tuple(one.name for one in found),
        message=(
            f"the units of `{first.name}` have the same weights ({how}) and get {gradient}, so they stay the same: "
            f"{len(found)} of {count} weight matrices are worth one unit each"
        ),
        evidence=(
            Evidence(name=f"difference between the units of {first.name}", value=first.row_spread or 0.0),
            Evidence(name="difference between their gradients", value=first.grad_row_spread or 0.0),
            Evidence(name=f"rms of {first.name}", value=first.weight_rms),
        ),
        cause=f"an initialisation that makes the units of a layer the same: {how}; draw the weights at random",
    )


def _looks_like(weight: ParameterReading) -> str:
    if weight.weight_rms == 0.0:
        return "zeros"
    constant = abs(abs(weight.weight_mean) - weight.weight_rms) <= 1e-6 * weight.weight_rms
    return f"the constant {weight.weight_mean:.3g}" if constant else "the same row for all"
