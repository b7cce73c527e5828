"""EG505: a part of the target lies beyond what the last operation can give."""

from math import log10
from statistics import median
from typing import ClassVar, final

from evengrad.diagnose._abstract import AbstractRunRule, Sign, Tells
from evengrad.diagnose._ends import form_of, is_whole, sampled
from evengrad.diagnose._places import last_layers
from evengrad.diagnose._proposals import FREE_OUTPUT, cure
from evengrad.diagnose.rules._output_cannot_reach_target import mean_error, range_of
from evengrad.nouns import Cure, Evidence, Record, TensorReading


@final
class OutputRangeTooNarrow(AbstractRunRule):
    """Output range too narrow: the mean of the target can be reached, but not its spread.

    Sees:
        A sigmoid, softmax, tanh, rectifier or softplus as the last operation before a squared or absolute error, and
        how far the extremes of the target lie beyond what it can give, as the median over the sampled batches. The rule
        speaks when that is more than one standard deviation of the target.

    Hurts:
        What lies beyond cannot be learnt, and pushes the output into the flat end of the non-linearity. An error of
        one standard deviation is what predicting the mean costs.

    Cure:
        A change of the code: no non-linearity behind the last layer (RemoveOutputActivation), or a target brought
        into its range (NormalizeTarget).

    False alarms:
        Told only in a run that another rule found sick: with a few outliers beyond the range a network learns the rest.

    Source:
        Wardat, Le and Rajan 2021, DeepLocalize, arXiv 2103.03376.
    """

    code: ClassVar[str] = "EG505"
    symptom: ClassVar[str] = "output range too narrow"
    source: ClassVar[str] = "Wardat, Le and Rajan 2021, DeepLocalize: Fault Localization for Deep Neural Networks"
    family: ClassVar[str] = "output-range"
    tells: ClassVar[Tells] = "cause"

    def judge(self, record: Record) -> Sign | None:
        """Compare the extremes of the target with what the last operation gives."""
        beyond: list[float] = []
        lows: list[float] = []
        highs: list[float] = []
        seen = None
        for reading in sampled(record):
            form = form_of(reading.ends) if reading.ends is not None else None
            target = reading.ends.target if reading.ends is not None else None
            if form is None or target is None or is_whole(target) or target.finite_frac == 0.0:
                continue
            if reading.ends is None or reading.ends.softmax_size == 1:
                continue
            bounds = range_of(form)
            beyond.append(0.0 if bounds is None else _beyond(target, bounds[1], bounds[2]))
            lows.append(target.minimum)
            highs.append(target.maximum)
            seen = (bounds, reading) if bounds is not None else seen
        if not beyond:
            return None
        size = median(beyond)
        if size <= 1.0 or seen is None or seen[0] is None:
            return Sign(decades=0.0)
        what, low, high = seen[0]
        return Sign(
            decades=log10(size),
            speaks=True,
            where=last_layers(seen[1]),
            severity="warning",
            when=(record.readings[0].step, record.readings[-1].step),
            message=(
                f"the last operation is a {what}, which gives {low:g} to {high:g}, and the target goes from "
                f"{min(lows):.3g} to {max(highs):.3g}: {size:.1f} of its standard deviations beyond"
            ),
            evidence=(Evidence(name="target beyond the range", value=size, unit="standard deviations"),),
            cause=f"remove the {what} behind the last layer, or bring the target into its range",
        )

    def cures(self) -> tuple[Cure, ...]:
        """Propose to take the activation off the output, then a target that it reaches."""
        return (*FREE_OUTPUT, cure("NormalizeTarget"))


def _beyond(target: TensorReading, low: float, high: float) -> float:
    """How far the target goes beyond a range, in its standard deviations; 0 where EG503 tells more."""
    if target.std == 0.0 or max(target.mean - high, low - target.mean) > mean_error(target):
        return 0.0
    return max(target.maximum - high, low - target.minimum, 0.0) / target.std
