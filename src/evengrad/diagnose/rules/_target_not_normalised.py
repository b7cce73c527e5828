"""EG702: the target is decades away from what the untrained model gives."""

from math import log10
from typing import ClassVar, final

from evengrad.diagnose._abstract import AbstractRunRule, Sign, Tells
from evengrad.diagnose._ends import DISTANCES, form_of, is_whole, rms_of, sampled, typical
from evengrad.nouns import Cure, Evidence, Record

# An output that has to grow by ten makes the gradient of the layers before it grow by ten and their curvature by a
# hundred, as an input of 10 does for the first layer.
LARGE = 10.0
# A spread of a hundredth of the output's: until the output has become that small the loss is that of its own noise,
# and then one step of usual length is larger than what is to be learnt.
SMALL = 0.01


@final
class TargetNotNormalised(AbstractRunRule):
    """Target not normalised: its size is decades from what the output has at the start.

    Sees:
        The root mean square of a floating-point target with a squared or absolute error, as median over the sampled
        batches, against that of the output before the first step (1 at the least: outputs may start at zero). The rule
        speaks where the target is ten times larger, or where its spread is less than a hundredth of the output's.

    Hurts:
        The first errors are as large as the target, and so is the gradient of a squared error. To give large outputs
        the last weights must become large, which makes gradient and curvature of all layers before them larger in turn:
        the learning rate that was stable is not any more. Adaptive optimizers do not blow up, but need as many steps
        as the target is larger than their learning rate.

    Cure:
        A change of the data: subtract the mean of the target and divide by its standard deviation, and undo it when
        predicting.

    False alarms:
        Told only in a run that another rule found sick. Runs that are not seen from their first step are not judged,
        nor models of a single layer with weights: its curvature is that of its input, whatever the target.

    Source:
        LeCun, Bottou, Orr and Mueller 1998, Efficient BackProp, section 4; Stack Overflow 46642627.
    """

    code: ClassVar[str] = "EG702"
    symptom: ClassVar[str] = "target not normalised"
    source: ClassVar[str] = "LeCun, Bottou, Orr and Mueller 1998, Efficient BackProp"
    family: ClassVar[str] = "target-scale"
    tells: ClassVar[Tells] = "cause"

    def judge(self, record: Record) -> Sign | None:
        """Compare the target with the output of the untrained model."""
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
        small = 0.0 < spread <= SMALL * first and size <= first
        if not (ratio >= LARGE or small):
            return Sign(decades=max(0.0, log10(ratio)) if ratio > 0.0 else 0.0)
        return Sign(
            decades=log10(first / spread) if small else log10(ratio),
            speaks=True,
            where=(targets[0].name,),
            severity="warning",
            when=(record.readings[0].step, record.readings[-1].step),
            message=(
                f"the target has a root mean square of {size:.3g} and a standard deviation of {spread:.3g}, the output "
                f"of the untrained model has {first:.3g}: the first errors are {'noise' if small else 'of that size'}"
            ),
            evidence=(
                Evidence(name="root mean square of the target", value=size),
                Evidence(name="standard deviation of the target", value=spread),
                Evidence(name="root mean square of the first output", value=first),
            ),
            cause="normalise the target: subtract its mean and divide by its standard deviation",
        )

    def cures(self) -> tuple[Cure, ...]:
        """Propose nothing: the data has to change."""
        return ()
