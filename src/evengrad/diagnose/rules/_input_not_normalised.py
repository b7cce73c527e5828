"""EG701: the numbers that go into the first layer are far from one."""

from dataclasses import dataclass
from math import log10, sqrt
from typing import ClassVar, final

from evengrad.diagnose._abstract import AbstractRunRule, Sign, Tells
from evengrad.diagnose._ends import is_whole, rms_of, sampled, typical
from evengrad.diagnose._places import first_weighted
from evengrad.diagnose._proposals import cure
from evengrad.nouns import Cure, Evidence, Reading, Record, TensorReading

# The curvature of the first layer's weights grows with the mean square of its input, and with it shrinks the step that
# is still stable: at a root mean square of 10 it is 100 times shorter than for the unit variance that initial weights
# and customary learning rates are made for.
LARGE_RMS = 10.0
# Nothing in the input reaches a thirtieth: the gradient of the first layer, relative to its weights, is as small, and
# its curvature a thousandth. Sparse and one-hot inputs have a small mean square but not this.
SMALL_ABSMAX = 0.03
# The largest feature sets the longest step, the smallest learns (its spread over the largest) squared as fast.
SPREAD_DECADES = 2.0
# Only if the largest feature is beyond the unit by itself: rare pixels with a small spread of their own do no harm.
SPREAD_STD = sqrt(10.0)
# The mean of a feature over its spread is the root of the condition number that it adds.
INSIDE_FACTOR = 10.0


@final
class InputNotNormalised(AbstractRunRule):
    """Input not normalised: its size is not what weights and learning rates are made for.

    Sees:
        The root mean square of the first floating-point input and the spread of its features, as medians over the
        sampled batches. The rule speaks for a root mean square of 10 or more, for an input of which nothing reaches
        0.03, and for features whose standard deviations are two decades apart while the largest is above 3.

    Hurts:
        Initial weights assume inputs of variance one. An input s times larger makes the first layer's gradient s times
        larger and its curvature s squared: the longest stable step of plain descent is s squared times shorter, and
        what comes after the first layer saturates or dies in the first steps. An input s times smaller learns that
        much slower, and features of unlike size learn at unlike speeds.

    Cure:
        A change of the data: subtract the mean and divide by the standard deviation of each feature (of the training
        set); divide pixels by 255. Or the same inside the model, so that raw input still works (NormalizeInput).

    False alarms:
        Told only in a run that another rule found sick. Ids, masks and inputs of one dimension are not judged, nor
        models whose first layer normalises, or whose first layer gives far less than its weights would make of the
        input: they normalise inside.

    Source:
        LeCun, Bottou, Orr and Mueller 1998, Efficient BackProp, section 4.3; Glorot and Bengio 2010.
    """

    code: ClassVar[str] = "EG701"
    symptom: ClassVar[str] = "input not normalised"
    source: ClassVar[str] = "LeCun, Bottou, Orr and Mueller 1998, Efficient BackProp"
    family: ClassVar[str] = "input-scale"
    tells: ClassVar[Tells] = "cause"

    def judge(self, record: Record) -> Sign | None:
        """Measure the first floating-point input over the sampled batches."""
        readings = sampled(record)
        inputs = [tensor for tensor in map(first_numbers, readings) if tensor is not None]
        if not inputs:
            return None
        size = _Size.of(inputs)
        what = _fault(size)
        if what is None or _normalises(readings[0], size.rms):
            return Sign(decades=abs(log10(size.rms)) if size.rms > 0.0 else 0.0)
        return Sign(
            decades=max(abs(log10(size.rms)) if size.rms > 0.0 else 0.0, size.spread_decades),
            speaks=True,
            where=(inputs[0].name,),
            severity="warning",
            when=(record.readings[0].step, record.readings[-1].step),
            message=what,
            evidence=(
                Evidence(name="root mean square of the input", value=size.rms),
                Evidence(name="largest magnitude", value=size.absmax),
                Evidence(name="largest standard deviation of a feature", value=size.std_max),
                Evidence(name="smallest standard deviation of a feature", value=size.std_min),
            ),
            cause="normalise the input: subtract the mean of each feature and divide by its standard deviation",
        )

    def cures(self) -> tuple[Cure, ...]:
        """Propose to normalise inside the model."""
        return (cure("NormalizeInput"),)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Size:
    """How large an input is: medians over batches."""

    rms: float
    absmax: float
    std_max: float
    std_min: float
    mean: float

    @staticmethod
    def of(inputs: list[TensorReading]) -> "_Size":
        return _Size(
            rms=typical([rms_of(one) for one in inputs]),
            absmax=typical([max(abs(one.minimum), abs(one.maximum)) for one in inputs]),
            std_max=typical([one.feature_std_max for one in inputs]),
            std_min=typical([one.feature_std_min for one in inputs]),
            mean=typical([one.mean for one in inputs]),
        )

    @property
    def spread_decades(self) -> float:
        return log10(self.std_max / self.std_min) if self.std_min > 0.0 and self.std_max > self.std_min else 0.0


def first_numbers(reading: Reading) -> TensorReading | None:
    """Find the first floating-point input with samples and features that is no mask."""
    for tensor in reading.ends.inputs if reading.ends is not None else ():
        if not is_whole(tensor) and tensor.dtype != "" and len(tensor.shape) >= 2 and not is_mask(tensor):
            return tensor
    return None


def is_mask(tensor: TensorReading) -> bool:
    """Tell whether a tensor is a mask by its name, or an additive one by its numbers: zero and nothing above it.

    Example:
        >>> is_mask(TensorReading(name="input.attention_mask")), is_mask(TensorReading(name="input", minimum=-1e9))
        (True, True)
    """
    return "mask" in tensor.name.lower() or (
        tensor.maximum == 0.0 and (tensor.minimum <= -1e4 or (tensor.minimum == 0.0 and tensor.finite_frac < 1.0))
    )


def _fault(size: _Size) -> str | None:
    if size.rms >= LARGE_RMS:
        return (
            f"the input has a root mean square of {size.rms:.3g} (mean {size.mean:.3g}): the longest stable step of "
            f"the first layer is {size.rms**2:.1e} times shorter than for inputs of variance one"
        )
    if 0.0 < size.absmax <= SMALL_ABSMAX:
        return f"nothing in the input is larger than {size.absmax:.2g}: the first layer hardly sees it"
    if size.spread_decades >= SPREAD_DECADES and size.std_max >= SPREAD_STD:
        return (
            f"the features of the input have standard deviations from {size.std_min:.2g} to {size.std_max:.3g}, "
            f"{size.spread_decades:.1f} decades apart: they learn at speeds that far apart"
        )
    return None


def _normalises(reading: Reading, rms: float) -> bool:
    """Tell whether the model brings its input to size itself, by a layer or by a formula in its forward."""
    for layer in reading.layers:
        if "Norm" in layer.kind:
            return True
        if layer.weighted:
            break
    first = first_weighted(reading)
    if first is None or first.kind in {"RNN", "LSTM", "GRU"} or not first.weight_norm or first.units == 0:
        return False
    expected = rms * first.weight_norm / sqrt(first.units)
    return reading.step == 0 and rms > 1.0 and first.activation_rms < expected / INSIDE_FACTOR
