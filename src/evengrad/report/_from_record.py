"""The story of a plain run: what was measured, without trials."""

from collections.abc import Sequence

import numpy as np

from evengrad.nouns import Curve, Finding, HeatMap, Reading, Record, Story, without_last_look
from evengrad.report._grid import Grid, heat_map_of, pooled
from evengrad.report._headline import NORMS_ONLY, NOTHING, headline_of
from evengrad.report._words import counted, number


def story_of_record(record: Record, findings: tuple[Finding, ...] = (), *, title: str) -> Story:
    """Tell a run that was only watched: heat maps of its gradients, its loss, and what is missing.

    Heat maps are pooled to 300 rows by 600 steps at once, so that the story of a long run stays small. A layer at whose
    output no gradient arrived counts as zero; one whose gradient was not finite as NaN. Readings whose number of norms
    is not that of `Record.parameters` are left out of the map, and a note says so.
    Where no reading has layers, headline and a note say that most rules had nothing to judge.

    Args:
        record: The readings, of a run or of a checkup.
        findings: What the rules said about them.
        title: What was looked at.

    Example:
        >>> record = Record(readings=(Reading(step=0, loss=2.3, grad_norms=(0.5,)),), parameters=("fc.weight",))
        >>> story_of_record(record, title="one batch").headline
        'No findings in 1 step; only gradient norms were recorded'
    """
    measured = [reading for reading in record.readings if reading.grad_norms]
    fitting = [reading for reading in measured if len(reading.grad_norms) == len(record.parameters)]
    norms_only = not any(reading.layers for reading in record.readings)
    maps = (_parameter_map(record, fitting), _layer_map(record.readings))
    return Story(
        title=title,
        headline=headline_of(findings, len(without_last_look(record.readings)), norms_only=norms_only),
        findings=findings,
        heat_maps=tuple(heat_map for heat_map in maps if heat_map is not None),
        curves=_loss_curve(record.readings),
        facts=_facts(record),
        notes=((NORMS_ONLY if record.readings else NOTHING,) if norms_only else ())
        + _notes(record, len(measured) - len(fitting)),
    )


def _parameter_map(record: Record, readings: Sequence[Reading]) -> HeatMap | None:
    if not readings:
        return None
    norm_LT = np.array([reading.grad_norms for reading in readings], dtype=np.float64).T
    return _map("Gradient norm of each parameter", record.parameters, readings, norm_LT)


def _layer_map(readings: Sequence[Reading]) -> HeatMap | None:
    sampled = [reading for reading in readings if any(layer.weighted for layer in reading.layers)]
    names = tuple(dict.fromkeys(layer.name for reading in sampled for layer in reading.layers if layer.weighted))
    if not names:
        return None
    rows = {name: row for row, name in enumerate(names)}
    norm_LT = np.zeros((len(names), len(sampled)))
    for column, reading in enumerate(sampled):
        for layer in reading.layers:
            if layer.weighted:
                norm_LT[rows[layer.name], column] = (layer.grad_norm or 0.0) if layer.grad_finite else np.nan
    return _map("Gradient norm at the output of each weighted layer", names, sampled, norm_LT)


def _map(title: str, rows: tuple[str, ...], readings: Sequence[Reading], norm_LT: np.ndarray) -> HeatMap:
    steps = tuple(reading.step for reading in readings)
    return heat_map_of(pooled(Grid(title=title, rows=rows, steps=steps, norm_LT=norm_LT)))


def _loss_curve(readings: Sequence[Reading]) -> tuple[Curve, ...]:
    known = [(reading.step, reading.loss) for reading in readings if reading.loss is not None]
    if len(known) < 2:
        return ()
    steps, losses = zip(*known, strict=True)
    return (Curve(label="training loss", group="before", steps=steps, values=losses),)


def _facts(record: Record) -> tuple[tuple[str, str], ...]:
    readings = record.readings
    facts = [("source", record.source)] if record.source else []
    if readings:
        first, last = readings[0].step, readings[-1].step
        steps = f"step {first}" if first == last else f"steps {first} to {last}, {counted(len(readings), 'reading')}"
        facts.append(("measured", steps))
    facts += [("parameters", counted(len(record.parameters), "tensor")), ("gradient dtype", record.dtype)]
    losses = [reading.loss for reading in readings if reading.loss is not None]
    if losses:
        facts.append(("loss", f"{number(losses[0])} at first, {number(losses[-1])} at last"))
    lrs = [lr for reading in readings for lr in reading.lrs]
    if lrs:
        low, high = number(min(lrs)), number(max(lrs))
        facts.append(("learning rate", low if low == high else f"{low} to {high}"))
    if len(readings) > 1:
        facts.append(("clipped", counted(sum(1 for reading in readings if reading.scale < 1), "step")))
        facts.append(("left out", counted(sum(1 for reading in readings if reading.skipped), "step")))
    return tuple(facts)


def _notes(record: Record, unfitting: int) -> tuple[str, ...]:
    notes = [record.note] if record.note else []
    if not record.complete and not record.note:
        notes.append("The run did not end by itself, or its log could not be read to the end.")
    if unfitting:
        wanted = len(record.parameters)
        notes.append(f"{counted(unfitting, 'reading')} with other than {wanted} norms left out of the heat map.")
    return tuple(notes)
