"""EG608: batch normalisation over too few numbers, or with statistics that nothing has set."""

from collections.abc import Sequence
from math import isfinite
from typing import ClassVar, final

from evengrad.diagnose._abstract import AbstractRunRule, Sign, Tells
from evengrad.diagnose._movement import thinned
from evengrad.diagnose._trend import losses_of, trend_of
from evengrad.nouns import Cure, Evidence, LayerReading, Reading, Record

# Two numbers, their mean taken off and divided by their deviation, are 1 and -1 whatever they were.
MOST_OBSERVATIONS = 2
# The last batch of a pass may be small, and one layer of many may stand behind a pooling to a single point.
MOST_OF_READINGS = 2 / 3
MOST_OF_LAYERS = 0.5
FEWEST_READINGS = 3
KINDS = ("BatchNorm", "SyncBatchNorm", "LazyBatchNorm")


@final
class BatchNormMisuse(AbstractRunRule):
    """Batch normalisation misuse: it normalises over one or two numbers, or with statistics that nothing has set.

    Sees:
        Over how many numbers (samples times positions) a unit of a batch normalisation is normalised in training mode;
        the rule speaks where it is two or fewer in most of the model's batch normalisations and at two thirds of the
        sampled steps. In evaluation mode, after steps have been made, whether the running statistics have seen a
        batch; the rule speaks where most have seen none and the loss has not come down.

    Hurts:
        Of two numbers only which is the larger is left, of one number nothing: the outputs are 1 and -1, or 0,
        whatever came in. Statistics that were never updated are a mean of 0 and a variance of 1: nothing is
        normalised, however large the signal has grown, and the model was meant to be trained otherwise.

    Cure:
        A larger batch, or a normalisation that does not look at other samples (LayerNorm, GroupNorm). `model.train()`
        before training where evaluation mode was left on.

    False alarms:
        A small last batch of a pass, and a single layer behind a pooling to one point, are not told. Statistics that
        were frozen on purpose have seen batches before. One batch alone, as in a checkup, is not judged.

    Source:
        Ioffe and Szegedy 2015, arXiv 1502.03167; Wu and He 2018, Group Normalization, arXiv 1803.08494, figure 1.
    """

    code: ClassVar[str] = "EG608"
    symptom: ClassVar[str] = "batch normalisation misuse"
    source: ClassVar[str] = "Wu and He 2018, Group Normalization, arXiv 1803.08494"
    family: ClassVar[str] = "batch-norm"
    tells: ClassVar[Tells] = "harm"

    def judge(self, record: Record) -> Sign | None:
        """Look at the batch normalisations of the sampled steps, by their mode."""
        readings = [one for one in thinned([one for one in record.readings if one.layers]) if _layers(one)]
        if len(readings) < FEWEST_READINGS:
            return None
        few = [one for one in readings if _are_most(_with_few(one), one)]
        if len(few) >= MOST_OF_READINGS * len(readings):
            return _few(few)
        unset = [one for one in readings[1:] if _are_most(_unset(one), one)]
        if unset and unset[-1] is readings[-1] and _no_gain(record):
            return _never_updated(unset)
        return Sign(decades=0.0)

    def cures(self) -> tuple[Cure, ...]:
        """Propose nothing: the cure is another batch, another module or another mode."""
        return ()


def _layers(reading: Reading) -> list[LayerReading]:
    return [layer for layer in reading.layers if layer.kind.startswith(KINDS)]


def _with_few(reading: Reading) -> list[LayerReading]:
    return [one for one in _layers(reading) if one.training and 0 < one.observations <= MOST_OBSERVATIONS]


def _unset(reading: Reading) -> list[LayerReading]:
    return [one for one in _layers(reading) if not one.training and one.tracked == 0]


def _are_most(found: Sequence[LayerReading], reading: Reading) -> bool:
    return len(found) > MOST_OF_LAYERS * len(_layers(reading))


def _no_gain(record: Record) -> bool:
    losses = losses_of(record)
    if losses and not isfinite(losses[-1][1]):
        return True
    trend = trend_of(record)
    return trend is not None and (not trend.fell or (trend.level is not None and trend.level.no_better))


def _few(readings: Sequence[Reading]) -> Sign:
    layers = _with_few(readings[0])
    first = layers[0]
    return Sign(
        decades=1.0,
        speaks=True,
        where=tuple(layer.name for layer in layers),
        message=(
            f"`{first.name}` ({first.kind}) normalises each unit over {first.observations} numbers of the batch: what "
            f"comes out hardly depends on what goes in"
        ),
        evidence=(Evidence(name=f"numbers that {first.name} normalises over", value=float(first.observations)),),
        when=(readings[0].step, readings[-1].step),
        cause="batches of one or two samples: take larger ones, or LayerNorm or GroupNorm",
    )


def _never_updated(readings: Sequence[Reading]) -> Sign:
    layers = _unset(readings[0])
    first = layers[0]
    return Sign(
        decades=1.0,
        speaks=True,
        where=tuple(layer.name for layer in layers),
        severity="warning",
        message=(
            f"`{first.name}` ({first.kind}) is in evaluation mode at step {readings[0].step} and its running "
            f"statistics have never seen a batch: it passes on what comes in"
        ),
        evidence=(Evidence(name=f"batches that {first.name} has seen", value=0.0),),
        when=(readings[0].step, readings[-1].step),
        cause="a mistake in the code: model.train() is missing, or the statistics of the trained model were not loaded",
    )
