"""EG507: output and target are of different shapes, and every sample is compared with the targets of all."""

from typing import ClassVar, final

from evengrad.diagnose._abstract import AbstractRule, Sign, Tells
from evengrad.diagnose._ends import DISTANCES, form_of, is_whole
from evengrad.nouns import Cure, Evidence, Reading, Record, TensorReading

EQUAL = 1e-5  # standard deviations of the same numbers, computed in float32 in another order


@final
class TargetBroadcast(AbstractRule):
    """Target broadcast: each sample is compared with the targets of the whole batch.

    Sees:
        A squared or smooth absolute error between an output of one number per sample, of shape (N, 1) or (N,), and a
        target that reaches the loss with shape (N, N) because output and target were broadcast against each other:
        all its rows are the same, or all its columns.

    Hurts:
        The best that each output can be is the mean of all targets, so that is what is learnt, whatever the input.

    Cure:
        A change of the code: bring both into one shape, `target.unsqueeze(-1)` or `output.squeeze(-1)`.

    False alarms:
        A matrix of distances between samples has rows that differ, and an operation between it and the output; other
        shapes that broadcast, such as a series of many samples against one, are not judged. A loss written by hand, and
        torch's l1_loss, are not judged, for its target is not seen as it reaches the loss.

    Source:
        The warning of torch.nn.functional.mse_loss (using a target size that is different to the input size).
    """

    code: ClassVar[str] = "EG507"
    symptom: ClassVar[str] = "target broadcast"
    source: ClassVar[str] = "The documentation and warnings of torch.nn.functional.mse_loss"
    family: ClassVar[str] = "labels"
    tells: ClassVar[Tells] = "always"

    def sign(self, reading: Reading, record: Record) -> Sign | None:
        """Hold the shapes of output and target against each other."""
        ends = reading.ends
        form = form_of(ends) if ends is not None else None
        if ends is None or ends.output is None or ends.target is None or form is None:
            return None
        if form.name not in DISTANCES or form.below or len(ends.output.shape) not in {1, 2}:
            return None
        copies = _copies(ends.output, ends.target)
        return _told(ends.output.shape[0], copies) if copies else Sign(decades=0.0)

    def cures(self) -> tuple[Cure, ...]:
        """Propose nothing: the code has to change."""
        return ()


def _copies(output: TensorReading, target: TensorReading) -> str:
    """Say what of a square of targets that meets a number per sample is the same: `rows` or `columns`; else nothing."""
    samples = output.shape[0]
    if samples < 2 or target.shape != (samples, samples) or is_whole(target) or target.std == 0.0:
        return ""
    if output.shape not in {(samples,), (samples, 1)}:
        return ""
    if target.constant_frac >= 1.0:
        return "rows"
    spread = target.feature_std_max
    return "columns" if spread > 0.0 and spread - target.feature_std_min <= EQUAL * spread else ""


def _told(samples: int, copies: str) -> Sign:
    row, column = (samples,), (samples, 1)
    output, target, fix = (
        (column, row, "target.unsqueeze(-1) or output.squeeze(-1)")
        if copies == "rows"
        else (row, column, "target.squeeze(-1)")
    )
    return Sign(
        decades=0.0,
        speaks=True,
        where=("target",),
        message=(
            f"an output of shape {output} is compared with a target of shape {target}: both are broadcast to "
            f"{(samples, samples)}, so each sample is compared with the targets of all {samples}"
        ),
        evidence=(Evidence(name="targets that each sample is compared with", value=float(samples)),),
        cause=f"a mistake in the code: output and target differ in shape; use {fix}",
    )
