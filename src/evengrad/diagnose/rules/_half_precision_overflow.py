"""EG205: float16 overflows, step after step."""

from collections.abc import Sequence
from math import isfinite
from typing import ClassVar, final

from evengrad.diagnose._abstract import AbstractRunRule, Sign, Tells
from evengrad.diagnose._profile import WIDEST_DECADES
from evengrad.diagnose._proposals import FULL_PRECISION, SMALLER_STEPS, cure
from evengrad.nouns import Cure, Evidence, LayerReading, Reading, Record

NARROW = "float16"
LARGEST = 65504.0
# One binary exponent below the end: what is there overflows when it doubles.
NEAR_THE_END = LARGEST / 2
# A gradient scaler starts at 2^16 and halves with each overflow: after 16 in a row its scale is 1, so one more shows
# that it is not the scale that is too large.
MOST_HALVINGS = 16


@final
class HalfPrecisionOverflow(AbstractRunRule):
    """Half-precision overflow: numbers beyond what float16 holds cost the steps.

    Sees:
        The largest activation of each layer in runs that compute in float16, and steps that were skipped because
        their gradient had overflowed. The rule speaks at the end of a run whose last 17 steps or more were all
        skipped (a scaler that starts at 2^16 has then halved its scale to less than 1), or when a module is not
        finite and the largest finite activation up to there is within a factor of two of 65504.

    Hurts:
        No step is done, so nothing is learnt; a scale that was halved so often makes small gradients underflow.

    Cure:
        Use bfloat16, which has the range of float32; compute the part that overflows (often attention scores, a sum
        over many positions, or a loss) in float32 (KeepInFloat32); weights and normalisation that keep activations
        small (Reinitialize, AddNormalization).

    False alarms:
        A scaler that finds its scale skips some steps at the start and one now and then: so many in a row it does
        not need. Large activations alone keep the rule silent. Runs in bfloat16 and float32 are not judged.

    Source:
        Micikevicius et al. 2018, arXiv 1710.03740, section 3.2.
    """

    code: ClassVar[str] = "EG205"
    symptom: ClassVar[str] = "half-precision overflow"
    source: ClassVar[str] = "Micikevicius et al. 2018, Mixed Precision Training, arXiv 1710.03740"
    family: ClassVar[str] = "precision"
    tells: ClassVar[Tells] = "harm"

    def judge(self, record: Record) -> Sign | None:
        """Look for an overflow in the last reading with layers, and for the row of skips that the run ends with."""
        row = _last_row_of_skips(record.readings)
        sampled = next((reading for reading in reversed(record.readings) if reading.layers), None)
        if not row and (sampled is None or not in_half_precision(record, sampled)):
            return None
        found = None if sampled is None or not in_half_precision(record, sampled) else overflown(sampled.layers)
        if sampled is not None and found is not None:
            return _told_of_a_layer(sampled, *found)
        if len(row) <= MOST_HALVINGS:
            return Sign(decades=0.0)
        return Sign(
            decades=WIDEST_DECADES,
            speaks=True,
            where=("optimizer",),
            when=(row[0].step, row[-1].step),
            message=(
                f"the gradient has overflowed in each of the last {len(row)} steps, and none of them was done: more "
                f"than the {MOST_HALVINGS} that a gradient scaler needs to halve its scale from 65536 to 1"
            ),
            evidence=(Evidence(name="steps skipped in a row", value=float(len(row))),),
        )

    def cures(self) -> tuple[Cure, ...]:
        """Propose what keeps activations small."""
        return (*FULL_PRECISION, cure("Reinitialize"), cure("AddNormalization"), *SMALLER_STEPS[:1])


def in_half_precision(record: Record, reading: Reading) -> bool:
    """Tell whether a run computes in float16, also under autocast, where only what comes out shows it."""
    output = None if reading.ends is None else reading.ends.output
    return (
        record.dtype == NARROW
        or (output is not None and output.dtype == NARROW)
        or any(one.dtype == NARROW for one in reading.weights)
    )


def overflown(layers: Sequence[LayerReading]) -> tuple[LayerReading, float] | None:
    """Find the first module that is not finite, if activations come near the end of float16 up to there."""
    largest = 0.0
    for layer in layers:
        if isfinite(layer.activation_absmax) and layer.activation_absmax <= LARGEST:
            largest = max(largest, layer.activation_absmax)
        if not layer.output_finite:
            return (layer, largest) if layer.input_finite and largest >= NEAR_THE_END else None
    return None


def _last_row_of_skips(readings: Sequence[Reading]) -> list[Reading]:
    """List the steps at the end of which every single one was left out by the scaler, which leaves no norms."""
    row: list[Reading] = []
    for reading in reversed(readings):
        if not reading.skipped or reading.grad_norms:
            break
        row.append(reading)
    return row[::-1]


def _told_of_a_layer(reading: Reading, layer: LayerReading, largest: float) -> Sign:
    return Sign(
        decades=WIDEST_DECADES,
        speaks=True,
        where=(layer.name,),
        when=(reading.step, reading.step),
        message=(
            f"`{layer.name}` ({layer.kind}) overflows {NARROW}: activations up to there are as large as {largest:.0f}, "
            f"and {LARGEST:.0f} is the end"
        ),
        evidence=(Evidence(name=f"largest finite activation up to {layer.name}", value=largest),),
    )
