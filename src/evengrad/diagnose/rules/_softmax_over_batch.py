"""EG506: the softmax goes over the samples of the batch instead of the classes."""

from math import prod
from typing import ClassVar, final

from evengrad.diagnose._abstract import AbstractRule, Sign, Tells
from evengrad.diagnose._ends import form_of, is_whole, samples_of
from evengrad.diagnose._places import last_layers
from evengrad.nouns import Cure, Ends, Evidence, Reading, Record

# What lies between the last layer and the loss: nothing, or a softmax whose logarithm is taken by hand.
DIRECT = frozenset({("cross entropy", ()), ("likelihood", ("Log", "Softmax")), ("likelihood", ("LogSoftmax",))})

# The sum over a batch of numbers that cancel: float32 leaves 2^-24 of each, and of some thousand less than this.
NOTHING = 1e-4


@final
class SoftmaxOverBatch(AbstractRule):
    """Softmax over the batch: the samples of a batch compete instead of the classes.

    Sees:
        An output of one row per sample and one column per class, a label for each sample, and over how many numbers
        the softmax in front of the likelihood goes: as many as there are samples, and not as many as there are classes.
        The bias of the last layer has no gradient then beyond rounding, for it adds the same to all samples of a class.

    Hurts:
        For each class the batch shares out a probability of one between its samples, whatever they are. What a sample
        gets depends on which others are in the batch, and the loss has its floor where a class occurs twice.

    Cure:
        A change of the code: `softmax(output, dim=-1)`, or `cross_entropy` on the logits.

    False alarms:
        Contrastive losses compare the samples of a batch on purpose; what they take for labels are places in the batch,
        and the last bias matters to them. Where the last layer has no bias, nothing is said. Not judged
        are batches of as many samples as there are classes, and targets that are no labels, such as a list that is to
        be ranked. Networks often learn something in spite of it, so by itself it does not make a run sick.

    Source:
        The documentation of torch.nn.functional.log_softmax; Islam et al. 2019, doi:10.1145/3338906.3338955.
    """

    code: ClassVar[str] = "EG506"
    symptom: ClassVar[str] = "softmax over the batch"
    source: ClassVar[str] = "Islam et al. 2019, A Comprehensive Study on Deep Learning Bug Characteristics"
    family: ClassVar[str] = "softmax-twice"
    tells: ClassVar[Tells] = "always"

    def sign(self, reading: Reading, record: Record) -> Sign | None:
        """Hold the size of the softmax against samples and classes."""
        ends = reading.ends
        if ends is None or ends.output is None or not _is_a_classifier(ends):
            return None
        samples, classes = ends.output.shape
        size = ends.softmax_size
        if size != samples or samples == classes or not _ignores_bias(reading, record):
            return Sign(decades=0.0)
        return Sign(
            decades=0.0,
            speaks=True,
            where=last_layers(reading),
            severity="warning",
            message=f"the softmax goes over the {samples} samples of the batch, and there are {classes} classes",
            evidence=(Evidence(name="numbers that the softmax goes over", value=float(samples)),),
            cause="a mistake in the code: the softmax has the wrong dim; take dim=-1, or cross_entropy on the logits",
        )

    def cures(self) -> tuple[Cure, ...]:
        """Propose nothing: the code has to change."""
        return ()


def _is_a_classifier(ends: Ends) -> bool:
    """Tell whether rows of the output go straight into a likelihood, with one label each."""
    form, output, target = form_of(ends), ends.output, ends.target
    if form is None or output is None or target is None or ends.softmax_size is None:
        return False
    return (
        (form.name, form.below) in DIRECT
        and len(output.shape) == 2
        and is_whole(target)
        and prod(target.shape) == samples_of(target) == samples_of(output)
        and target.maximum < output.shape[1]
        and target.maximum != samples_of(output) - 1  # places in the batch, as a contrastive loss has them
    )


def _ignores_bias(reading: Reading, record: Record) -> bool:
    """Tell whether the last bias has no gradient beyond rounding, while its weight has one.

    It adds the same to all samples of a class, which a softmax over them does not see. A loss that compares samples
    with each other does see it.
    """
    norms = dict(zip(record.parameters, reading.grad_norms, strict=False))
    pairs = [(norms.get(f"{name}.bias"), norms.get(f"{name}.weight")) for name in last_layers(reading)]
    known = [(bias, weight) for bias, weight in pairs if bias is not None and weight]
    return bool(known) and all(bias <= NOTHING * weight for bias, weight in known)
