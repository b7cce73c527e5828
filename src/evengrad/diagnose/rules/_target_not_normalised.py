"""EG702: the target's own scale is decades away from 1."""

from math import log10, sqrt
from typing import ClassVar, final

from evengrad.diagnose._abstract import AbstractRunRule, Sign, Tells
from evengrad.diagnose._ends import DISTANCES, form_of, is_whole, rms_of, sampled, typical
from evengrad.diagnose._proposals import CLIPPING, SMALLER_STEPS, cure
from evengrad.nouns import Cure, Evidence, Record

# An output that has to grow by ten makes the gradient of the layers before it grow by ten and their curvature by a
# hundred, as an input of 10 does for the first layer.
LARGE = 10.0
# A spread of a hundredth, of one or of a smaller output: until the output has become that small the loss is that of its
# own noise, and then one step of usual length is larger than what is to be learnt. An output that is larger than one
# is not what the target has to follow: it is what is wrong.
SMALL = 0.01
# A mean of a hundred standard deviations: of a squared error one part in ten thousand is left to learn once the mean is
# met, and until then the errors of all samples have the same sign and pull all units the same way.
OFFSET = 100.0


@final
class TargetNotNormalised(AbstractRunRule):
    """Target not normalised: its own scale is decades away from 1.

    Sees:
        The root mean square of a floating-point target with a squared or absolute error, as median over the sampled
        batches. The rule speaks where it is 10 and more and ten times that of the output before the first step; where
        the target's standard deviation is below a hundredth, and below a hundredth of that output; and where its mean
        is a hundred standard deviations.

    Hurts:
        The first errors are as large as the target, and so is the gradient of a squared error. To give large outputs
        the last weights must become large, which makes gradient and curvature of all layers before them larger in turn:
        the learning rate that was stable is not any more. Adaptive optimizers do not blow up, but need as many steps
        as the target is larger than their learning rate.

    Cure:
        A change of the data: subtract the mean of the target and divide by its standard deviation, and undo it when
        predicting; or inside the model and the loss, so that raw numbers still come out (NormalizeTarget).

    False alarms:
        Told only in a run that another rule found sick. A target near 1 is not told however far the output is: then
        the output is wrong. Runs that are not seen from their first step are not judged, nor models of a single layer
        with weights: its curvature is that of its input, whatever the target.

    Source:
        LeCun, Bottou, Orr and Mueller 1998, Efficient BackProp, section 4; Stack Overflow 46642627.
    """

    code: ClassVar[str] = "EG702"
    symptom: ClassVar[str] = "target not normalised"
    source: ClassVar[str] = "LeCun, Bottou, Orr and Mueller 1998, Efficient BackProp"
    family: ClassVar[str] = "target-scale"
    tells: ClassVar[Tells] = "cause"

    def judge(self, record: Record) -> Sign | None:
        """Judge the target by itself, and leave it where the untrained model is as far from 1."""
        readings = sampled(record)
        if not readings or readings[0].step != 0:
            return None
        ends = [reading.ends for reading in readings if reading.ends is not None]
        targets = [one.target for one in ends if one.target is not None and not is_whole(one.target)]
        form, output = form_of(ends[0]), ends[0].output
        if sum(layer.weighted for layer in readings[0].layers) == 1:
            return None
        if not targets or output is None or form is None or form.name not in DISTANCES:
            return None
        size, spread = typical([rms_of(one) for one in targets]), typical([one.std for one in targets])
        first = rms_of(output)
        ratio = size / max(first, 1.0)
        how = _how(size, spread, first)
        if how is None:
            return Sign(decades=max(0.0, log10(ratio)) if ratio > 0.0 else 0.0)
        decades, harm = how
        return Sign(
            decades=decades,
            speaks=True,
            where=(targets[0].name,),
            severity="warning",
            when=(record.readings[0].step, record.readings[-1].step),
            message=(
                f"the target has a root mean square of {size:.3g} and a standard deviation of {spread:.3g}, the output "
                f"of the untrained model has {first:.3g}: {harm}"
            ),
            evidence=(
                Evidence(name="root mean square of the target", value=size),
                Evidence(name="standard deviation of the target", value=spread),
                Evidence(name="root mean square of the first output", value=first),
            ),
            cause="normalise the target: subtract its mean and divide by its standard deviation",
        )

    def cures(self) -> tuple[Cure, ...]:
        """Propose to let the network learn a normalised target."""
        return (cure("NormalizeTarget"), *SMALLER_STEPS, *CLIPPING)


def _how(size: float, spread: float, first: float) -> tuple[float, str] | None:
    """Say by how many decades the target is off, and what that does; None where it is not."""
    if size >= LARGE * max(first, 1.0):
        return log10(size / max(first, 1.0)), "the first errors are of that size"
    if 0.0 < spread <= SMALL * min(first, 1.0) and size <= first:
        return log10(min(first, 1.0) / spread), "the first errors are noise"
    if spread > 0.0 and size > spread and sqrt(size**2 - spread**2) >= OFFSET * spread:
        return log10(size / spread), "the first errors are all the mean of the target"
    return None
