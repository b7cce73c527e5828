"""EG302: saturating non-linearities driven to where they have no slope."""

from typing import ClassVar, final

from evengrad.diagnose._abstract import AbstractRule, Sign, Tells
from evengrad.diagnose._profile import without_call
from evengrad.diagnose._proposals import SMALLER_STEPS, cure
from evengrad.diagnose.rules._dead_units import lost_decades, reaches
from evengrad.nouns import Cure, Evidence, LayerReading, Reading, Record

THRESHOLD_FRAC = 0.75
CRITICAL_FRAC = 0.99


@final
class SaturatedUnits(AbstractRule):
    """Saturated units: sigmoid, tanh and their kin driven to where they have no slope.

    Sees:
        For each module or function that is a saturating non-linearity the share of output elements that have kept
        less than a twentieth of its largest slope (for tanh: beyond 0.975 in magnitude). The rule speaks when three
        quarters have: that layer then halves the gradient at the least.

    Hurts:
        The gradient is multiplied by the slope. Layer by layer little is left, and the weights that drove the units
        there cannot be pulled back.

    Cure:
        Smaller weights (Reinitialize), inputs of zero mean and unit variance (NormalizeInput), normalisation before
        the non-linearity (AddNormalization), one that does not saturate (SwapActivation), a smaller learning rate if
        it happened during training (ScaleLearningRate).

    False alarms:
        Gates are not looked at, neither those inside recurrent modules nor functions whose output only multiplies
        others (highways, squeeze-and-excite): they are meant to close. The output of a network is not judged: a
        classifier that is sure of itself has a saturated sigmoid at its end.

    Source:
        Glorot and Bengio 2010, Understanding the difficulty of training deep feedforward neural networks, section 3.
    """

    code: ClassVar[str] = "EG302"
    symptom: ClassVar[str] = "saturated units"
    source: ClassVar[str] = "Glorot and Bengio 2010, Understanding the difficulty of training deep feedforward networks"
    family: ClassVar[str] = "saturated"
    tells: ClassVar[Tells] = "harm"

    def sign(self, reading: Reading, record: Record) -> Sign | None:
        """Judge every saturating non-linearity that has a weighted layer after it."""
        judged = [
            (layer, layer.saturated_frac)
            for index, layer in enumerate(reading.layers)
            if layer.saturated_frac is not None and layer.output_finite and not layer.gate
            if _goes_on(layer, reading.layers[index + 1 :])
        ]
        if not judged:
            return None
        worst, frac = max(judged, key=lambda item: item[1])
        saturated = [layer for layer, share in judged if reaches(share, THRESHOLD_FRAC)]
        if not saturated:
            return Sign(decades=lost_decades(frac))
        return Sign(
            decades=lost_decades(frac),
            speaks=True,
            where=tuple(layer.name for layer in saturated),
            severity="critical" if reaches(frac, CRITICAL_FRAC) else "warning",
            message=(
                f"{frac:.0%} of the outputs of `{worst.name}` ({worst.nonlinearity}) have lost 95 % of their slope; "
                f"{len(saturated)} of {len(judged)} such layers are at {THRESHOLD_FRAC:.0%} or more"
            ),
            evidence=(
                Evidence(name=f"saturated outputs of {worst.name}", value=100 * frac, unit="%"),
                Evidence(name=f"activation rms of {worst.name}", value=worst.activation_rms),
            ),
        )

    def cures(self) -> tuple[Cure, ...]:
        """Propose weights, normalisation, another activation, smaller steps."""
        return (
            cure("Reinitialize"),
            cure("NormalizeInput"),
            *SMALLER_STEPS,
            cure("SwapActivation", to="relu"),
            cure("AddNormalization"),
        )


def _goes_on(layer: LayerReading, later: tuple[LayerReading, ...]) -> bool:
    """Tell whether a weighted layer comes after; one that holds this layer ends later but does not come after."""
    return any(
        one.weighted and one.name != "(model)" and not layer.name.startswith(f"{without_call(one.name)}.")
        for one in later
    )
