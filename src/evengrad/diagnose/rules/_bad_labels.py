"""EG704: labels that hold nothing to learn."""

from collections.abc import Sequence
from math import log
from typing import ClassVar, final

from evengrad.diagnose._abstract import AbstractRunRule, Sign, Tells
from evengrad.diagnose._ends import form_of, is_whole, sampled, samples_of
from evengrad.diagnose._places import last_weighted
from evengrad.nouns import Cure, Evidence, Reading, Record, TensorReading

FEWEST_BATCHES = 3
FEWEST_SAMPLES = 8
# So many independent samples of one class by chance: below one in a million even if one in ten is of another.
MINORITY_FRAC = 0.1
LEAST_CHANCE = 1e-6


@final
class BadLabels(AbstractRunRule):
    """Bad labels: all of the same class.

    Sees:
        The smallest and the largest label of each sampled batch. The rule speaks when all labels of all of three or
        more batches are one and the same class although the logits come straight from a layer, and so many samples
        that chance is out.

    Hurts:
        A model that always answers with that class has no loss left: it has learnt nothing of the data, and fails on
        everything else.

    Cure:
        A change of the data: look at how the labels are made (an integer division, a wrong column, a file in the order
        of its classes that is not shuffled).

    False alarms:
        In contrastive losses and rankings the right answer may stand first by design: there the numbers that the
        softmax takes do not come straight from a layer with as many units. Targets that are floating-point numbers, as
        for the discriminator of a GAN, are not judged. Labels beyond the classes are not told: torch refuses them,
        unless they mean "leave this one out" (`ignore_index`), whatever their number is.

    Source:
        Stack Overflow 59325381 (labels divided by 255); Humbatova et al. 2020, arXiv 1910.11015.
    """

    code: ClassVar[str] = "EG704"
    symptom: ClassVar[str] = "bad labels"
    source: ClassVar[str] = "Humbatova et al. 2020, Taxonomy of Real Faults in Deep Learning Systems"
    family: ClassVar[str] = "labels"
    tells: ClassVar[Tells] = "always"

    def judge(self, record: Record) -> Sign | None:
        """Look at the labels of the sampled batches."""
        labelled = [(reading, target) for reading in sampled(record) if (target := _labels(reading)) is not None]
        if not labelled:
            return None
        return _one_class(labelled, record) or Sign(decades=0.0)

    def cures(self) -> tuple[Cure, ...]:
        """Propose nothing: the data has to change."""
        return ()


Labelled = Sequence[tuple[Reading, TensorReading]]


def _labels(reading: Reading) -> TensorReading | None:
    """Give the labels of a cross entropy over classes."""
    ends = reading.ends
    form = form_of(ends) if ends is not None else None
    if ends is None or ends.target is None or form is None or form.name not in {"cross entropy", "likelihood"}:
        return None
    return ends.target if is_whole(ends.target) and samples_of(ends.target) > 0 else None


def _classes(labelled: Labelled, record: Record) -> int:
    """Number of classes, where the logits come straight from a layer with as many units; 0 otherwise."""
    last = next((last for reading in record.readings if (last := last_weighted(reading)) is not None), None)
    sizes = {reading.ends.softmax_size for reading, _ in labelled if reading.ends is not None}
    forms = [form_of(reading.ends) for reading, _ in labelled if reading.ends is not None]
    size = sizes.pop() if len(sizes) == 1 else None
    if last is None or size is None or last.units != size or any(form is None or form.below for form in forms):
        return 0
    return size


def _one_class(labelled: Labelled, record: Record) -> Sign | None:
    judged = [(reading, target) for reading, target in labelled if samples_of(target) >= FEWEST_SAMPLES]
    count = sum(samples_of(target) for _, target in judged)
    label = judged[0][1].minimum if judged else 0.0
    if (
        len(judged) < FEWEST_BATCHES
        or count * log(1.0 - MINORITY_FRAC) > log(LEAST_CHANCE)
        or any(not target.minimum == target.maximum == label for _, target in judged)
    ):
        return None
    classes = _classes(judged, record)
    if classes < 2 or not 0.0 <= label < classes:
        return None
    return Sign(
        decades=0.0,
        speaks=True,
        where=("target",),
        when=(judged[0][0].step, judged[-1][0].step),
        message=(
            f"all {count} labels of {len(judged)} batches are the class {label:.0f}, of "
            f"{classes} classes: "
            "there is nothing to tell apart"
        ),
        evidence=(Evidence(name="labels seen", value=float(count)), Evidence(name="the only label", value=label)),
        cause="the labels are all the same: look at how they are made",
    )
