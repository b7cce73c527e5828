"""Cures whose numbers come from the readings of the sick training: how much larger a step, which bound."""

from __future__ import annotations

from dataclasses import replace
from math import isfinite
from statistics import median

from evengrad.nouns import Cure, Finding, Record, Setting, SettingError
from evengrad.treat import bound_from, factor_from_update_ratio

# A factor nearer to 1 than this is none: the ratio that it comes from is a rule of thumb.
LEAST_FACTOR = 10.0
NEAR = 3.0  # two numbers that differ by less are the same


def tailored(findings: tuple[Finding, ...], record: Record) -> tuple[Finding, ...]:
    """Add to the cures that scale the learning rate or clip one whose number this training has asked for.

    A factor goes before the others of its direction, since it is known and they are guesses; a bound goes last, since
    the usual one of 1 is right as often.

    Args:
        findings: Of the training.
        record: Its readings.
    """
    factor, bound = _factor(record), _bound(record)
    return tuple(replace(finding, cures=_added(finding.cures, factor, bound)) for finding in findings)


def _added(cures: tuple[Cure, ...], factor: float | None, bound: float | None) -> tuple[Cure, ...]:
    found: list[Cure] = []
    last: tuple[Cure, ...] = ()
    for cure in cures:
        number = _number(cure)
        scales, clips = cure.treatment == "ScaleLearningRate", cure.treatment == "ClipGradients"
        if scales and factor is not None and number is not None and (number > 1) == (factor > 1):
            if not _is_near(factor, [_number(one) for one in cures if one.treatment == cure.treatment]):
                found.append(_with(cure, ("factor", factor)))
            factor = None
        found.append(cure)
        if clips and bound is not None and number is not None:
            last = () if _is_near(bound, [number]) else (_with(cure, ("max_norm", bound)),)
            bound = None
    return (*found, *last)


def _with(cure: Cure, setting: tuple[str, Setting]) -> Cure:
    return Cure(treatment=cure.treatment, settings=(setting,), change=cure.change, blames=cure.blames)


def _number(cure: Cure) -> float | None:
    value = dict(cure.settings).get("factor" if cure.treatment == "ScaleLearningRate" else "max_norm")
    return float(value) if isinstance(value, int | float) else None


def _is_near(value: float, known: list[float | None]) -> bool:
    return any(one is not None and 1 / NEAR < value / one < NEAR for one in known)


def _factor(record: Record) -> float | None:
    """Take the factor from the steps of the first half, before a training that goes wrong has gone all the way.

    Where they grow it is the first step that tells: an explosion says nothing of the learning rate that began it.
    """
    sampled = [reading for reading in record.readings if reading.weights]
    ratios = [_ratio([one.update_ratio for one in reading.weights]) for reading in sampled[: -(-len(sampled) // 2)]]
    known = [ratio for ratio in ratios if ratio]
    if not known:
        return None
    factor = factor_from_update_ratio(min(known[0], median(known)))
    return factor if not 1 / LEAST_FACTOR < factor < LEAST_FACTOR else None


def _ratio(ratios: list[float | None]) -> float | None:
    known = [ratio for ratio in ratios if ratio is not None and isfinite(ratio) and ratio > 0.0]
    return median(known) if known else None


def _bound(record: Record) -> float | None:
    try:
        return bound_from(reading.total_norm for reading in record.readings if reading.total_norm is not None)
    except SettingError:
        return None
