"""EG107: a gradient far above all others was applied, and the loss has not come back from it."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from statistics import median
from typing import ClassVar, final

from evengrad.diagnose._abstract import AbstractRunRule, Sign, Tells
from evengrad.diagnose._norms import largest_parameters, log_norms, spread_of
from evengrad.diagnose._proposals import CLIPPING, SMALLER_STEPS, cure
from evengrad.nouns import Cure, Evidence, Reading, Record

# Ten times the usual norm, and beyond what the usual scatter (in decades, where heavy tails are light) does by chance.
FEWEST_DECADES = 1.0
FEWEST_SIGMAS = 6.0
WINDOW = 50
LATELY = 5  # steps within which large norms are one event
FEWEST_BEFORE = 20
FEWEST_LOSSES = 10
MOST_CANDIDATES = 50
# A loss that differs by less than a thousandth has not got worse in a way that anyone would call a spike.
SMALLEST_RISE = 2.0**-10
UNCLIPPED = 0.99


@dataclass(frozen=True, kw_only=True, slots=True)
class _Spike:
    """One norm that stands out: the place of its reading, the usual norm's logarithm, and by how much it is more."""

    place: int
    usual: float
    excess: float


@final
class GradientSpike(AbstractRunRule):
    """Gradient spike: one step with a gradient far above all others was done, and the loss is worse ever since.

    Sees:
        The norm of all gradients together against its median over the 50 steps before. The rule speaks of a norm that
        is ten times as large and six standard deviations away, whose step was neither skipped nor clipped, when of the
        losses of the next 50 steps not even the best quarter comes back to the level of the 50 steps before, or one
        of them is not finite.

    Hurts:
        The step goes as far as many others together in a direction that one batch has given. Adaptive optimizers
        keep it in their moments for as long as those last.

    Cure:
        Clip the gradients (ClipGradients; a guard does by default), skip such steps; look at the batch; a smaller
        learning rate (ScaleLearningRate), a longer warm-up.

    False alarms:
        A spike that does no harm is not told. A change of the data or of the loss in the middle of a run, as in a
        curriculum, raises both; so it is told only in a run that another rule has found sick.

    Source:
        Chowdhery et al. 2022, PaLM, arXiv 2204.02311, section 5.1; Pascanu, Mikolov and Bengio 2013, arXiv 1211.5063.
    """

    code: ClassVar[str] = "EG107"
    symptom: ClassVar[str] = "gradient spike"
    source: ClassVar[str] = "Chowdhery et al. 2022, PaLM: Scaling Language Modeling with Pathways, section 5.1"
    family: ClassVar[str] = "spike"
    tells: ClassVar[Tells] = "cause"

    def judge(self, record: Record) -> Sign | None:
        """Find the norms that stand out, and tell of the first that the loss has not come back from."""
        norms = log_norms(record.readings)
        if len(norms) <= FEWEST_BEFORE:
            return None
        spikes = _spikes(norms, record.readings)
        harmful = [spike for spike in spikes if _got_worse(record.readings, spike.place) is not None]
        if not harmful:
            return Sign(decades=max((spike.excess for spike in spikes), default=0.0))
        return _told(harmful, record)

    def cures(self) -> tuple[Cure, ...]:
        """Propose bounded steps, then smaller ones."""
        return (*CLIPPING, *SMALLER_STEPS[:1], cure("WarmUp"))


def _spikes(norms: Sequence[tuple[int, float]], readings: Sequence[Reading]) -> list[_Spike]:
    """List the norms that stand out and were applied; a rough pass first, for long runs."""
    rough: list[int] = []
    usual = median(norm for _, norm in norms[:WINDOW])
    for index, (place, norm) in enumerate(norms):
        if index and index % WINDOW == 0:
            usual = median(norm for _, norm in norms[index - WINDOW : index])
        reading = readings[place]
        applied = not reading.skipped and reading.scale >= UNCLIPPED
        if index >= FEWEST_BEFORE and applied and norm >= usual + FEWEST_DECADES / 2:
            rough.append(index)
    if len(rough) > MOST_CANDIDATES:
        rough = sorted(sorted(rough, key=lambda index: -norms[index][1])[:MOST_CANDIDATES])
    found = (_spike_at(norms, index) for index in rough)
    return [spike for spike in found if spike is not None]


def _spike_at(norms: Sequence[tuple[int, float]], index: int) -> _Spike | None:
    before = [norm for _, norm in norms[max(0, index - WINDOW) : index]]
    usual = median(before)
    excess = norms[index][1] - usual
    if excess < max(FEWEST_DECADES, FEWEST_SIGMAS * spread_of(before)):
        return None
    if max(before[-LATELY:]) > usual + FEWEST_DECADES / 2:
        return None  # norms are large already: what comes after a spike, or a blow-up, and no spike of its own
    return _Spike(place=norms[index][0], usual=usual, excess=excess)


def _got_worse(readings: Sequence[Reading], place: int) -> tuple[float, float] | None:
    """Give the level of the loss before and after, where it has not come back; None where it has, or nobody knows.

    The loss of the step itself was computed before it and is left out.
    """
    before = _losses(readings[max(0, place - WINDOW) : place])
    after = _losses(readings[place + 1 : place + 1 + WINDOW])
    before = [loss for loss in before if isfinite(loss)]
    if len(before) < FEWEST_LOSSES:
        return None
    level = median(before)
    if any(not isfinite(loss) for loss in after):
        return level, float("nan")
    if len(after) < FEWEST_LOSSES:
        return None
    best_quarter = sorted(after)[len(after) // 4]
    return (level, median(after)) if best_quarter > level + max(spread_of(before), SMALLEST_RISE * abs(level)) else None


def _losses(readings: Sequence[Reading]) -> list[float]:
    return [reading.loss for reading in readings if reading.loss is not None]


def _told(harmful: Sequence[_Spike], record: Record) -> Sign:
    spike = harmful[0]
    reading = record.readings[spike.place]
    level = _got_worse(record.readings, spike.place)
    assert level is not None
    more = f", and {len(harmful) - 1} more" if len(harmful) > 1 else ""
    return Sign(
        decades=spike.excess,
        speaks=True,
        where=largest_parameters(reading, record) or ("optimizer",),
        severity="warning",
        when=(reading.step, record.readings[harmful[-1].place].step),
        message=(
            f"a gradient of norm {10 ** (spike.usual + spike.excess):.1e} was applied, {spike.excess:.1f} decades "
            f"above the median of the steps before{more}; the loss was {level[0]:.4g} before and {level[1]:.4g} over "
            f"the next {WINDOW} steps"
        ),
        evidence=(
            Evidence(name=f"gradient norm at step {reading.step}", value=10 ** (spike.usual + spike.excess)),
            Evidence(name="median of the norms before", value=10**spike.usual),
            Evidence(name="median loss before", value=level[0]),
            Evidence(name="median loss after", value=level[1]),
        ),
    )
