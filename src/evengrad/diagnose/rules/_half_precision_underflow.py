"""EG204: gradients in float16 are below its smallest normal number."""

from math import isfinite
from typing import ClassVar, final

from evengrad.diagnose._abstract import AbstractRule, Sign, Tells
from evengrad.diagnose._half import ran_in_float16
from evengrad.diagnose._profile import WIDEST_DECADES
from evengrad.diagnose._proposals import FULL_PRECISION, cure
from evengrad.diagnose.rules._dead_units import lost_decades
from evengrad.diagnose.rules._signal_cut import cleared, is_dead
from evengrad.nouns import Cure, Evidence, ParameterReading, Reading, Record

# With half of its elements lost, a gradient has lost what small gradients are made of: in the network of Micikevicius
# et al. 2018 (section 3.2) that could not train without loss scaling, 67 % had become zero.
THRESHOLD_FRAC = 0.5
# Exact zeros have many reasons (rectifiers, unused rows); numbers below the smallest normal one have this one only, so
# some must be seen before zeros are counted as lost. A gradient that is spread over decades and half of which is below
# the smallest subnormal has at least this share among the 3 decades between.
FEWEST_TINY_FRAC = 0.02
NARROW = "float16"  # bfloat16 has the range of float32
SMALLEST = 2.0**-24  # its smallest subnormal number


@final
class HalfPrecisionUnderflow(AbstractRule):
    """Half-precision underflow: much of a gradient in float16 is too small for it.

    Sees:
        Weights in float16: the share of their gradient that is exactly zero or below the smallest normal number
        (6.1e-5), in the scaling in which the backward ran. The rule speaks where half of the elements of a weight are
        and some of them are not yet zero, which shows that it is underflow, while the weights nearest to the loss
        have kept theirs. It also speaks where all weights are in float16, or the forward has run in it (all it gives
        are numbers of float16, as under autocast), and nothing is left of any gradient, although the loss is not zero,
        no unit is dead and no graph cut: then all of it was below 6e-8. bfloat16 and float32 are not judged.

    Hurts:
        What has become zero cannot be scaled back. The layers far from the loss stop learning, as if the gradient
        vanished.

    Cure:
        Scale the loss before its backward (`torch.amp.GradScaler`, ScaleLoss), keep the weights in float32 and use
        autocast (KeepInFloat32), or use bfloat16.

    False alarms:
        A network that has converged has small gradients too, and many networks learn well with a good part of the
        elements lost; so it is told only in a run that another rule has found sick.

    Source:
        Micikevicius et al. 2018, arXiv 1710.03740, section 3.2.
    """

    code: ClassVar[str] = "EG204"
    symptom: ClassVar[str] = "half-precision underflow"
    source: ClassVar[str] = "Micikevicius et al. 2018, Mixed Precision Training, arXiv 1710.03740"
    family: ClassVar[str] = "precision"
    tells: ClassVar[Tells] = "cause"

    def sign(self, reading: Reading, record: Record) -> Sign | None:
        """Judge the weights in float16, embeddings left out: most of their rows have no gradient."""
        if _all_gone(reading, record):
            return _told_of_all(reading)
        judged = [
            (one, share)
            for one in reading.weights
            if one.dtype == NARROW and one.fan_in > 0 and (share := _lost(one)) is not None
        ]
        if not judged:
            return None
        worst, share = max(judged, key=lambda item: item[1])
        under = [one.name for one, lost in judged if lost >= THRESHOLD_FRAC]
        kept_at_end = judged[-1][1] < THRESHOLD_FRAC
        if not under or (not kept_at_end and len(judged) > 1):
            return Sign(decades=lost_decades(share))
        return Sign(
            decades=lost_decades(share),
            speaks=True,
            where=tuple(under),
            severity="warning",
            message=(
                f"{share:.0%} of the gradient of `{worst.name}` is zero or below the smallest normal number of "
                f"{NARROW}; so is half or more in {len(under)} of {len(judged)} weights"
            ),
            evidence=(
                Evidence(name=f"lost elements of {worst.name}", value=100 * share, unit="%"),
                Evidence(name=f"gradient rms of {worst.name}", value=worst.grad_rms or 0.0),
            ),
            cause=f"the gradient is computed in {NARROW} without a loss scale that lifts it into its range",
        )

    def cures(self) -> tuple[Cure, ...]:
        """Propose a scale for the loss, then float32."""
        return (cure("ScaleLoss"), *FULL_PRECISION)


def _all_gone(reading: Reading, record: Record) -> bool:
    """Tell whether every gradient is zero, weights or forward are in float16, and nothing else explains it."""
    if any(reading.grad_norms) or not reading.grad_norms or not reading.weights:
        return False
    if any(one.grad_zero_frac != 1.0 for one in reading.weights):
        return False
    if any(one.dtype != NARROW for one in reading.weights) and not ran_in_float16(reading):
        return False
    if not reading.loss or not isfinite(reading.loss) or is_dead(reading) or cleared([reading], record):
        return False
    return reading.ends is None or (not reading.ends.cuts and reading.ends.softmax_size != 1)


def _told_of_all(reading: Reading) -> Sign:
    names = tuple(one.name for one in reading.weights if one.fan_in > 0) or tuple(one.name for one in reading.weights)
    return Sign(
        decades=WIDEST_DECADES,
        speaks=True,
        where=names,
        message=(
            f"the network runs in {NARROW} and the gradient of all its weights is exactly zero, although the loss is "
            f"{reading.loss:.3g}: what is below {SMALLEST:.1e} is zero there"
        ),
        evidence=(
            Evidence(name="parameters whose gradient is zero", value=float(len(reading.weights))),
            Evidence(name=f"smallest number of {NARROW}", value=SMALLEST),
        ),
        cause=f"the gradient is computed in {NARROW} without a loss scale that lifts it into its range",
    )


def _lost(one: ParameterReading) -> float | None:
    if one.grad_tiny_frac is None or one.grad_zero_frac is None:
        return None
    return one.grad_tiny_frac + (one.grad_zero_frac if one.grad_tiny_frac >= FEWEST_TINY_FRAC else 0.0)
