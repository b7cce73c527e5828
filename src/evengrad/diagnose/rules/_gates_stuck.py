"""EG304: gates of recurrent layers that neither open nor shut any more."""

from typing import ClassVar, final

from evengrad.diagnose._abstract import AbstractRule, Sign, Tells
from evengrad.nouns import Cure, Evidence, LayerReading, Reading, Record

# As for dead units: with nine in ten units stuck at below 0.01 or above 0.99 the slope of those gates is a 25th of its
# largest, and a layer passes a third of the gradient to them at the most.
THRESHOLD_FRAC = 0.9
# At most this mean when nine in ten gates are below 0.01 and the others half open.
SHUT_MEAN = 0.1

GATES = {3: ("input", "forget", "output"), 2: ("reset", "update")}
# What a gate that is shut (or open, for the update gate of torch's GRU, which is the share of the old state) does. A
# forget gate that is open is how an LSTM remembers, and an open input, output or reset gate is a plain recurrent layer.
SHUT = {
    "input": "nothing enters the memory",
    "forget": "the memory is lost at every step",
    "output": "nothing leaves the memory",
}
OPEN = {"update": "the state stays as it is and nothing enters it"}


@final
class GatesStuck(AbstractRule):
    """Gates stuck: the gates of an LSTM or GRU are shut for nearly all units and all observations.

    Sees:
        For each gate of an LSTM (input, forget, output) and a GRU (reset, update) the share of units whose gate is
        below 0.01 or above 0.99 at every sample and time step, and the mean of the gate. The rule speaks when nine in
        ten are stuck on the side that cuts: an input, forget or output gate of an LSTM that is shut, an update gate
        of a GRU that keeps the old state; or when all gates of a layer are stuck, on whatever side.

    Hurts:
        A gate at its end has no slope, so nothing teaches it to move. A shut input gate keeps the input out, a shut
        output gate the state in, a shut forget gate makes the layer forget everything at each step.

    Cure:
        A smaller bias or weights (Reinitialize), inputs of unit scale, a smaller learning rate if it happened during
        training (ScaleLearningRate).

    False alarms:
        Open forget gates are how an LSTM remembers. A task that needs no memory may shut its forget gates, and a model
        may learn to do without a layer: told only in a run that does not learn.

    Source:
        Gers, Schmidhuber and Cummins 2000, Learning to forget; Gu et al. 2020, Improving the gating mechanism of
        recurrent neural networks, arXiv 1910.09890.
    """

    code: ClassVar[str] = "EG304"
    symptom: ClassVar[str] = "gates stuck"
    source: ClassVar[str] = "Gu et al. 2020, Improving the Gating Mechanism of Recurrent Neural Networks"
    family: ClassVar[str] = "gates"
    tells: ClassVar[Tells] = "cause"

    def sign(self, reading: Reading, record: Record) -> Sign | None:
        """Judge every layer whose gates were seen."""
        judged = [
            layer
            for layer in reading.layers
            if layer.output_finite and len(layer.gate_stuck_frac) == len(layer.gate_mean) and layer.gate_stuck_frac
        ]
        judged = [layer for layer in judged if len(layer.gate_stuck_frac) in GATES]
        if not judged:
            return None
        stuck = [(layer, what) for layer in judged if (what := _what(layer))]
        if not stuck:
            return Sign(decades=0.0)
        first, (gate, consequence) = stuck[0]
        place = GATES[len(first.gate_mean)].index(gate)
        frac, mean = first.gate_stuck_frac[place], first.gate_mean[place]
        return Sign(
            decades=1.0,
            speaks=True,
            where=tuple(layer.name for layer, _ in stuck),
            severity="critical" if frac == 1.0 else "warning",
            message=(
                f"{frac:.0%} of the {gate} gates of `{first.name}` ({first.kind}) are stuck at a mean of {mean:.2g}: "
                f"{consequence}"
            ),
            evidence=(
                Evidence(name=f"stuck {gate} gates of {first.name}", value=100 * frac, unit="%"),
                Evidence(name=f"mean of the {gate} gates", value=mean),
            ),
        )

    def cures(self) -> tuple[Cure, ...]:
        """Propose weights, smaller steps."""
        return (Cure(treatment="Reinitialize"), Cure(treatment="ScaleLearningRate", settings=(("factor", 0.1),)))


def _what(layer: LayerReading) -> tuple[str, str] | None:
    """Name the first gate that cuts and what comes of it; None where none does."""
    names = GATES[len(layer.gate_mean)]
    gates = list(zip(names, layer.gate_stuck_frac, layer.gate_mean, strict=True))
    for name, stuck, mean in gates:
        if stuck < THRESHOLD_FRAC:
            continue
        if name in SHUT and mean <= SHUT_MEAN:
            return name, SHUT[name]
        if name in OPEN and mean >= 1.0 - SHUT_MEAN:
            return name, OPEN[name]
    if all(stuck >= THRESHOLD_FRAC for _, stuck, _ in gates):
        return names[0], "and so are the others: none of them can learn"
    return None
