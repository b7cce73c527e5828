"""What came of a training: the trial for the reports, its readings and its findings."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from evengrad.diagnose import findings_of, loss_left, symptoms_of
from evengrad.nouns import Finding, Record, Trial


@dataclass(frozen=True, kw_only=True, slots=True)
class Course:
    """A training so far and everything that was read on the way.

    Args:
        trial: What goes into reports.
        record: A reading for each step, with layers on the sampled ones.
        findings: What the rules say of the record.
        state: The state of the trained model, on the CPU; None before the end.
        first_batch: What the first batch sums up to, to notice trials that do not see the same data.
        interrupted: Whether Ctrl-C ended it; the rest is what it had come to.
    """

    trial: Trial
    record: Record
    findings: tuple[Finding, ...]
    state: dict[str, Tensor] | None = None
    first_batch: str = ""
    interrupted: bool = False


def judged(record: Record) -> tuple[tuple[Finding, ...], tuple[tuple[str, float], ...]]:
    """Ask the rules; give the findings and the size of each symptom: the larger of the first and the last sample."""
    sampled = [reading for reading in record.readings if reading.layers]
    sizes: dict[str, float] = {}
    for reading in (sampled[0], sampled[-1]) if sampled else ():
        for code, size in symptoms_of(reading, record).items():
            sizes[code] = max(size, sizes.get(code, 0.0))
    return findings_of(record), tuple(sorted(sizes.items()))


# A loss nearer than this to that of the best constant prediction has shown nothing: a twentieth, as EG804 has it.
FLAT_FRAC = 0.95


def is_flat(record: Record) -> bool:
    """Tell whether a training has learnt no more than a constant; not where nobody knows what a constant would lose."""
    left = loss_left(record)
    return left is not None and left >= FLAT_FRAC
