"""EG608: batch normalisation over too few numbers, or with statistics that nothing has set."""

from typing import ClassVar, final

from evengrad.diagnose._abstract import AbstractRule, Sign, Tells
from evengrad.nouns import Cure, Evidence, LayerReading, Reading, Record

# Two numbers, their mean taken off and divided by their deviation, are 1 and -1 whatever they were.
FEWEST_OBSERVATIONS = 3
KINDS = ("BatchNorm", "SyncBatchNorm", "LazyBatchNorm")


@final
class BatchNormMisuse(AbstractRule):
    """Batch normalisation misuse: it normalises over one or two numbers, or with statistics that nothing has set.

    Sees:
        For each batch normalisation in training mode over how many numbers (samples times positions) a unit is
        normalised; the rule speaks at two or fewer. In evaluation mode, after steps have been made, whether its
        running statistics have seen a batch; the rule speaks when they have seen none.

    Hurts:
        Of two numbers only which is the larger is left, of one number nothing: the outputs are 1 and -1, or 0,
        whatever came in. Statistics that were never updated are a mean of 0 and a variance of 1: nothing is
        normalised, however large the signal has grown, and the model was meant to be trained otherwise.

    Cure:
        A larger batch, or a normalisation that does not look at other samples (LayerNorm, GroupNorm). `model.train()`
        before training where evaluation mode was left on.

    False alarms:
        Statistics that were frozen on purpose have seen batches before. A checkup of a fresh model in evaluation mode
        is not judged, since nothing has been trained. Told only in a run that does not learn.

    Source:
        Ioffe and Szegedy 2015, arXiv 1502.03167; Wu and He 2018, Group Normalization, arXiv 1803.08494, figure 1.
    """

    code: ClassVar[str] = "EG608"
    symptom: ClassVar[str] = "batch normalisation misuse"
    source: ClassVar[str] = "Wu and He 2018, Group Normalization, arXiv 1803.08494"
    family: ClassVar[str] = "batch-norm"
    tells: ClassVar[Tells] = "cause"

    def sign(self, reading: Reading, record: Record) -> Sign | None:
        """Judge every batch normalisation by its mode."""
        layers = [layer for layer in reading.layers if layer.kind.startswith(KINDS)]
        if not layers:
            return None
        few = [layer for layer in layers if layer.training and 0 < layer.observations < FEWEST_OBSERVATIONS]
        if few:
            return _few(few)
        trained = any(reading.step > one.step for one in record.readings[:1])
        unset = [layer for layer in layers if not layer.training and layer.tracked == 0]
        return _unset(unset, reading.step) if unset and trained else Sign(decades=0.0)

    def cures(self) -> tuple[Cure, ...]:
        """Propose nothing: the cure is another batch, another module or another mode."""
        return ()


def _few(layers: list[LayerReading]) -> Sign:
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
        cause="batches of one or two samples: take larger ones, or LayerNorm or GroupNorm",
    )


def _unset(layers: list[LayerReading], step: int) -> Sign:
    first = layers[0]
    return Sign(
        decades=1.0,
        speaks=True,
        where=tuple(layer.name for layer in layers),
        severity="warning",
        message=(
            f"`{first.name}` ({first.kind}) is in evaluation mode at step {step} and its running statistics have never "
            f"seen a batch: it passes on what comes in"
        ),
        evidence=(Evidence(name=f"batches that {first.name} has seen", value=0.0),),
        cause="a mistake in the code: model.train() is missing, or the statistics of the trained model were not loaded",
    )
