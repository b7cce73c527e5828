"""EG503: no output that the last operation can give comes near the target."""

from math import inf, log10, sqrt
from typing import ClassVar, final

from evengrad.diagnose._abstract import AbstractRule, Sign, Tells
from evengrad.diagnose._ends import CROSS_ENTROPIES, DISTANCES, Form, form_of, is_whole, samples_of
from evengrad.diagnose._places import last_layers, last_weighted
from evengrad.diagnose._proposals import FREE_OUTPUT, cure
from evengrad.nouns import Cure, Ends, Evidence, Reading, Record, TensorReading

RANGES = {
    "Sigmoid": (0.0, 1.0),
    "Softmax": (0.0, 1.0),
    "Hardsigmoid": (0.0, 1.0),
    "Tanh": (-1.0, 1.0),
    "Relu": (0.0, inf),
    "Softplus": (0.0, inf),
}
NAMES = {"Relu": "ReLU"}
SIGMAS = 4.0


@final
class OutputCannotReachTarget(AbstractRule):
    """Output cannot reach the target: the last operation forbids it.

    Sees:
        Three things. A softmax over a single number, which is 1 whatever the number is. A sigmoid, softmax, tanh,
        rectifier or softplus as the last operation before a squared or absolute error, with a target whose *mean* lies
        outside what it can give. A likelihood loss (nll_loss) of numbers that are no logarithms of probabilities.

    Hurts:
        The softmax over one number has exactly no gradient. A target beyond the range pushes the output into the flat
        end of the non-linearity, where it has no slope left; not even the best constant prediction can be reached.
        A likelihood of plain numbers has no lowest value: it is minus the number itself.

    Cure:
        A change of the code: no non-linearity behind the last layer of a regression (RemoveOutputActivation); a
        sigmoid, or two units, for two classes; cross_entropy, or log_softmax before nll_loss
        (AddOutputActivation).

    False alarms:
        Only the last operation before the loss counts, and none that is scaled or shifted afterwards. A target of which
        a part lies beyond the range is told by EG505, and only in a run that is sick. An attention over a single key
        is a softmax over one number too, but not the last operation of the model.

    Source:
        Stack Overflow 33969059, 31880720 and 34311586 (softmax over one unit); Wardat, Le and Rajan 2021, DeepLocalize,
        arXiv 2103.03376.
    """

    code: ClassVar[str] = "EG503"
    symptom: ClassVar[str] = "output cannot reach the target"
    source: ClassVar[str] = "Wardat, Le and Rajan 2021, DeepLocalize: Fault Localization for Deep Neural Networks"
    family: ClassVar[str] = "output-range"
    tells: ClassVar[Tells] = "always"

    def sign(self, reading: Reading, record: Record) -> Sign | None:
        """Look at the last operation, and at the target."""
        form = form_of(reading.ends) if reading.ends is not None else None
        if reading.ends is None or form is None:
            return None
        for look in (_softmax_over_one, _mean_outside, _no_logarithm):
            sign = look(form, reading)
            if sign is not None:
                return sign
        return Sign(decades=0.0)

    def cures(self) -> tuple[Cure, ...]:
        """Propose to take the activation off the output, a target that it reaches, or the activation that it lacks."""
        return (*FREE_OUTPUT, cure("NormalizeTarget"), cure("AddOutputActivation"))


def range_of(form: Form) -> tuple[str, float, float] | None:
    """Name the last operation and what it can give, for losses that measure a distance; None where it is free.

    Example:
        >>> range_of(Form(name="squared error", below=("Sigmoid",)))
        ('sigmoid', 0.0, 1.0)
    """
    op = form.below[0] if form.below else ""
    if form.name not in DISTANCES or op not in RANGES:
        return None
    return (NAMES.get(op, op.lower()), *RANGES[op])


def mean_error(target: TensorReading) -> float:
    """How far the mean of a batch may be off by chance, or by so little that nothing is lost: a tenth of the spread."""
    return target.std * max(SIGMAS / sqrt(max(samples_of(target), 1)), 0.1)


def _softmax_over_one(form: Form, reading: Reading) -> Sign | None:
    ends, last = reading.ends, last_weighted(reading)
    if ends is None or ends.softmax_size != 1:
        return None
    at_the_loss = form.name in CROSS_ENTROPIES or form.below[:1] in {("Softmax",), ("LogSoftmax",), ("Log",)}
    one_unit = (ends.output is not None and ends.output.features == 1) and (last is None or last.units == 1)
    if not (at_the_loss and one_unit):
        return None
    return Sign(
        decades=0.0,
        speaks=True,
        where=last_layers(reading),
        message="the softmax before the loss goes over a single number: it is always 1, and its gradient exactly zero",
        evidence=(Evidence(name="numbers that the softmax goes over", value=1.0),),
        cause="a softmax over one number is always 1: use a sigmoid, or two units",
    )


def _mean_outside(form: Form, reading: Reading) -> Sign | None:
    bounds, target = range_of(form), reading.ends.target if reading.ends is not None else None
    if bounds is None or target is None or is_whole(target) or target.finite_frac == 0.0:
        return None
    what, low, high = bounds
    beyond = max(target.mean - high, low - target.mean)
    if beyond <= mean_error(target):
        return None
    return Sign(
        decades=max(0.0, log10(1.0 + beyond)),
        speaks=True,
        where=last_layers(reading),
        message=(
            f"the last operation is a {what}, which gives {_span(low, high)}, and the target has a mean of "
            f"{target.mean:.3g} (from {target.minimum:.3g} to {target.maximum:.3g}): not even its mean can be reached"
        ),
        evidence=(
            Evidence(name="mean of the target", value=target.mean),
            Evidence(name="smallest target", value=target.minimum),
            Evidence(name="largest target", value=target.maximum),
        ),
        cause=f"remove the {what} behind the last layer, or bring the target into {_span(low, high)}",
    )


def _no_logarithm(form: Form, reading: Reading) -> Sign | None:
    output: Ends | None = reading.ends
    if form.name != "likelihood" or output is None or output.output is None:
        return None
    probabilities = form.below[:1] == ("Softmax",)
    if not probabilities and (form.below or output.output.maximum <= 0.0):
        return None
    what = "probabilities" if probabilities else "the plain outputs of the last layer"
    return Sign(
        decades=0.0,
        speaks=True,
        where=last_layers(reading),
        severity="warning" if probabilities else "critical",
        message=f"nll_loss takes logarithms of probabilities and gets {what}",
        evidence=(Evidence(name="largest output", value=output.output.maximum),),
        cause="a mistake in the code: use cross_entropy on the plain outputs, or log_softmax before nll_loss",
    )


def _span(low: float, high: float) -> str:
    return f"{low:g} to {high:g}" if high < inf else f"nothing below {low:g}"
