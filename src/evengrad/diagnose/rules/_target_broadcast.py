"""EG507: output and target are of different shapes, and every sample is compared with the targets of all."""

from dataclasses import replace
from typing import ClassVar, final

from evengrad.diagnose._abstract import AbstractRule, Sign, Tells
from evengrad.diagnose._ends import DISTANCES, form_of, is_whole, samples_of
from evengrad.nouns import Cure, Ends, Evidence, Reading, Record, TensorReading

Shape = tuple[int, ...]

# What holds an output against a target, as torch names it in the graph.
COMPARISONS = frozenset({"HuberLoss", "L1Loss", "MseLoss", "Rsub", "SmoothL1Loss", "Sub"})
EQUAL = 1e-5  # standard deviations of the same numbers, computed in float32 in another order


@final
class TargetBroadcast(AbstractRule):
    """Target broadcast: each sample is compared with the targets of the whole batch.

    Sees:
        A squared or absolute error, of torch or written by hand, between an output of one number per sample, of shape
        (N, 1) or (N,), and a target against which it is broadcast to (N, N). Where the target is known only as it
        reaches the loss, all its rows are the same, or all its columns.

    Hurts:
        The best that each output can be is the mean of all targets, so that is what is learnt, whatever the input.

    Cure:
        A change of the code: bring both into one shape, `target.unsqueeze(-1)` or `output.squeeze(-1)`.

    False alarms:
        A matrix of distances between samples has rows that differ, and an operation between it and the output; other
        shapes that broadcast, such as a series of many samples against one, are not judged. The distance to the nearest
        target, and between two distributions (all pairs, less the pairs of each), are other losses and are not told.

    Source:
        The warning of torch.nn.functional.mse_loss (using a target size that is different to the input size).
    """

    code: ClassVar[str] = "EG507"
    symptom: ClassVar[str] = "target broadcast"
    source: ClassVar[str] = "The documentation and warnings of torch.nn.functional.mse_loss"
    family: ClassVar[str] = "labels"
    tells: ClassVar[Tells] = "always"

    def sign(self, reading: Reading, record: Record) -> Sign | None:
        """Hold the shapes of output and target against the shape in which the loss compares them."""
        ends = reading.ends
        if ends is None or ends.output is None or (ends.target is None and ends.compared_shape is None):
            return None
        form = form_of(_without_root(ends))
        if form is None or form.name not in DISTANCES or sum(op in COMPARISONS for op in ends.loss_ops) != 1:
            return None
        samples = samples_of(ends.output)
        if samples < 2 or ends.output.shape not in {(samples,), (samples, 1)}:
            return None
        shapes = _compared(ends, samples) if ends.compared_shape is not None or not form.below else None
        return _told(samples, *shapes) if shapes else Sign(decades=0.0)

    def cures(self) -> tuple[Cure, ...]:
        """Propose nothing: the code has to change."""
        return ()


def _without_root(ends: Ends) -> Ends:
    return replace(ends, loss_ops=ends.loss_ops[1:]) if ends.loss_ops[:1] == ("Sqrt",) else ends


def _compared(ends: Ends, samples: int) -> tuple[Shape, Shape] | None:
    """Give the shapes of output and target where they are broadcast to a square; None where they are not."""
    square, output, target = (samples, samples), ends.output, ends.target
    if target is not None and target.shape == square:
        return _shapes_before(target, samples)
    if output is None or ends.compared_shape != square:
        return None
    return output.shape, () if target is None else target.shape


def _shapes_before(target: TensorReading, samples: int) -> tuple[Shape, Shape] | None:
    """Say what output and target were before they became a square of equal rows or columns; None for another square."""
    if is_whole(target) or target.std == 0.0:
        return None
    row, column = (samples,), (samples, 1)
    if target.constant_frac >= 1.0:
        return column, row
    spread = target.feature_std_max
    return (row, column) if spread > 0.0 and spread - target.feature_std_min <= EQUAL * spread else None


def _told(samples: int, output: Shape, target: Shape) -> Sign:
    return Sign(
        decades=0.0,
        speaks=True,
        where=("target",),
        message=(
            f"an output of shape {output} is compared with a target of {_in_words(target)}: both are broadcast to "
            f"{(samples, samples)}, so each sample is compared with the targets of all {samples}"
        ),
        evidence=(Evidence(name="targets that each sample is compared with", value=float(samples)),),
        cause=f"a mistake in the code: output and target differ in shape; {_fix(output, target)}",
    )


def _in_words(target: Shape) -> str:
    return f"shape {target}" if target else "another shape"


def _fix(output: Shape, target: Shape) -> str:
    if len(output) == len(target):  # the loss itself has given one of them another shape
        return "let the loss compare them in one"
    return "use target.unsqueeze(-1) or output.squeeze(-1)" if len(output) == 2 else "use target.squeeze(-1)"
