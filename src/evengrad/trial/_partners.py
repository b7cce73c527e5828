"""What a treatment is combined with: what its own trial lacks, and what acts on something else."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

from evengrad.diagnose import rules
from evengrad.treat import AbstractTreatment, ScaleLearningRate, make
from evengrad.trial._candidates import KINDS, combined, likeness, parts_of, proposed
from evengrad.trial._entrant import Entrant
from evengrad.trial._judge import NOT_LEARNING
from evengrad.trial._tailored import tailored

MOST_OWN = 3  # that the diagnosis of its trial proposes
MOST_PARTNERS = 6
# What a training lacks that is fine and slow.
FASTER = ScaleLearningRate(factor=10.0)


def partners(
    base: Entrant, others: Sequence[AbstractTreatment], *, learns: bool, slow: bool
) -> list[AbstractTreatment]:
    """Combine a treatment with others, by rank.

    Args:
        base: What is to be combined, with its trial.
        others: What has been tried beside it and what else there is, by rank.
        learns: Whether it learns and has no finding.
        slow: Whether it does, and not to the end at this rate.
    """
    own = diagnosed(base)
    if not own and base.alive and not learns:
        own = hopes_for(base.treatment)
    all_ = [*own, *others]
    order = sorted(range(len(all_)), key=lambda place: likeness(base.treatment, all_[place], own=place < len(own)))
    found = [all_[place] for place in order[:MOST_PARTNERS]]
    if slow:
        found.insert(0, FASTER)  # and again, while that helps
    return combined(base.treatment, found)


def diagnosed(entrant: Entrant) -> list[AbstractTreatment]:
    """List what a trial is itself found to lack; that it learns nothing is no diagnosis."""
    if entrant.course is None:
        return []
    findings = tuple(one for one in entrant.course.findings if one.code != NOT_LEARNING)
    return proposed(tailored(findings, entrant.course.record))[:MOST_OWN]


def hopes_for(base: AbstractTreatment) -> list[AbstractTreatment]:
    """List the cures of a training that learns nothing: in turn what the base leaves as it is, and what it changes.

    What acts on the same as the base, as another factor of a rate that has been scaled, goes last: it has not helped.
    """
    rule = next(one for one in rules.ALL if one.code == NOT_LEARNING)
    hopes = [make(cure.treatment, cure.settings) for cure in rule.cures()]
    sides = {part.changes_model for part in parts_of(base)}
    kinds = {KINDS.get(part.name) for part in parts_of(base)}
    other, same = ([one for one in hopes if (one.changes_model in sides) is is_same] for is_same in (False, True))
    in_turn = [one for turn in zip_longest(other, same) for one in turn if one is not None]
    return sorted(in_turn, key=lambda one: KINDS.get(one.name) in kinds)
