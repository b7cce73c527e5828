"""EG703: inputs that are not finite, or that do not tell one sample from another."""

from collections.abc import Sequence
from math import isfinite
from typing import ClassVar, final

from evengrad.diagnose._abstract import AbstractRunRule, Sign, Tells
from evengrad.diagnose._ends import sampled, samples_of
from evengrad.diagnose.rules._input_not_normalised import is_mask
from evengrad.nouns import Cure, Evidence, Reading, Record, TensorReading

FEWEST_SAMPLES = 8
FEWEST_BATCHES = 3


@final
class BadInput(AbstractRunRule):
    """Bad input: numbers that are not finite, or the same for every sample.

    Sees:
        The share of elements of each floating-point input and of the target that are finite, in each sampled batch;
        and whether any feature of any input differs between the samples of a batch, while the target does. The rule
        speaks for an input or a target that is not finite where something behind it is not either (an activation, a
        gradient, the loss), and for inputs that are constant in all of three or more batches of eight samples or more.

    Hurts:
        One NaN in a batch makes every weight NaN in one step. A model that gets the same input for all samples can
        learn nothing but the mean of their targets.

    Cure:
        A change of the data: drop or fill what is missing, look for divisions by a spread of zero and logarithms of
        zero in the preparation; check that the input is what is meant to go in (integer division, a wrong column).

    False alarms:
        Masks of minus infinity are left out. Targets and inputs in which NaN stands for "missing" are not told when the
        model or the loss leaves those out, since then all that follows is finite. The same batch at every step is fine.

    Source:
        Humbatova et al. 2020, Taxonomy of real faults in deep learning systems, arXiv 1910.11015.
    """

    code: ClassVar[str] = "EG703"
    symptom: ClassVar[str] = "bad input"
    source: ClassVar[str] = "Humbatova et al. 2020, Taxonomy of Real Faults in Deep Learning Systems"
    family: ClassVar[str] = "bad-data"
    tells: ClassVar[Tells] = "always"

    def judge(self, record: Record) -> Sign | None:
        """Look for what is not finite in all readings, and for what is constant in the sampled ones."""
        with_ends = [reading for reading in record.readings if reading.ends is not None]
        if not with_ends:
            return None
        for reading in with_ends:
            broken = [tensor for tensor in _tensors(reading) if tensor.finite_frac < 1.0 and not is_mask(tensor)]
            if broken and _spreads(reading):
                return _not_finite(broken, reading, record)
        return _constant(sampled(record)) or Sign(decades=0.0)

    def cures(self) -> tuple[Cure, ...]:
        """Propose nothing: the data has to change."""
        return ()


def _tensors(reading: Reading) -> tuple[TensorReading, ...]:
    ends = reading.ends
    if ends is None:
        return ()
    return (*ends.inputs, ends.target) if ends.target is not None else ends.inputs


def _spreads(reading: Reading) -> bool:
    """Tell whether anything behind the input is not finite: what is masked out on the way does no harm."""
    numbers = (reading.loss, reading.total_norm)
    return (
        any(number is not None and not isfinite(number) for number in numbers)
        or any(not isfinite(norm) for norm in reading.grad_norms)
        or any(not (layer.output_finite and layer.grad_finite) for layer in reading.layers)
    )


def _not_finite(broken: Sequence[TensorReading], reading: Reading, record: Record) -> Sign:
    worst = min(broken, key=lambda tensor: tensor.finite_frac)
    return Sign(
        decades=0.0,
        speaks=True,
        where=tuple(tensor.name for tensor in broken),
        when=(reading.step, record.readings[-1].step),
        message=f"{1.0 - worst.finite_frac:.2%} of `{worst.name}` is NaN or infinite, and so is what follows from it",
        evidence=tuple(
            Evidence(
                name=f"elements of {tensor.name} that are not finite", value=100 * (1 - tensor.finite_frac), unit="%"
            )
            for tensor in broken[:6]
        ),
        cause="the data holds NaN or infinite numbers: drop or fill them before they reach the model",
    )


def _constant(readings: Sequence[Reading]) -> Sign | None:
    """Speak when nothing that goes in differs within any batch while the target does."""
    judged = [
        reading
        for reading in readings
        if reading.ends is not None
        and reading.ends.inputs
        and reading.ends.target is not None
        and min(samples_of(tensor) for tensor in reading.ends.inputs) >= FEWEST_SAMPLES
        and reading.ends.target.minimum < reading.ends.target.maximum
        and reading.ends.target.constant_frac < 1.0
    ]
    if len(judged) < FEWEST_BATCHES or not all(
        tensor.features > 0 and tensor.constant_frac >= 1.0
        for reading in judged
        if reading.ends is not None
        for tensor in reading.ends.inputs
    ):
        return None
    ends = judged[0].ends
    names = tuple(tensor.name for tensor in ends.inputs) if ends is not None else ()
    return Sign(
        decades=0.0,
        speaks=True,
        where=names,
        when=(judged[0].step, judged[-1].step),
        message=f"in all of {len(judged)} batches every sample has the same input, while the targets differ",
        evidence=(Evidence(name="features that are the same for all samples of a batch", value=100.0, unit="%"),),
        cause="the model cannot tell one sample from another: look at what is fed into it",
    )
