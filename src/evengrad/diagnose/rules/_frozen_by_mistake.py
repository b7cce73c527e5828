"""EG110: weights that are frozen before anything has trained them."""

from typing import ClassVar, final

from evengrad.diagnose._abstract import AbstractRunRule, Sign, Tells
from evengrad.diagnose._initial import layers_as_torch_draws_them, looks_untrained
from evengrad.diagnose._profile import WIDEST_DECADES, without_call
from evengrad.diagnose._proposals import EVERYTHING_TRAINED
from evengrad.nouns import Cure, Evidence, Record, Setup

# One layer may agree with its initial norm by chance: with 64 units the band is a tenth of the norm to each side. Two
# layers in it by chance are one case in twenty or fewer; with 256 units the band is half as wide.
FEWEST_LAYERS = 2
ENOUGH_UNITS = 256


@final
class FrozenByMistake(AbstractRunRule):
    """Frozen by mistake: weights are frozen that are still as they were drawn.

    Sees:
        Weights that require no gradient and are as they were drawn, while something else is trained. A run knows them
        by their elements, if nothing has moved them in 128 steps (or by its end). Elsewhere, where the optimizer holds
        them too, their numbers are known: all their biases are exactly zero, or all weights have the size that one
        usual initialisation draws. Else linear and convolutional layers are looked at that have the norm of torch's
        own initialisation, whose square is a third of the number of units: two of them, or one of 256 units or more.

    Hurts:
        Random weights stay random: the trained layers get random features, or have their output scrambled by them.

    Cure:
        A change of the code: `requires_grad_(True)` for what is to be trained; load the pretrained weights before
        freezing, and check with `strict=True` that they were found. Training all of it shows whether it was meant
        (TrainEverything).

    False alarms:
        Pretrained weights have other norms than drawn ones, so frozen bodies of fine-tuned networks are not told.
        Random features, reservoirs and random targets are frozen on purpose; so it is told only in a run that another
        rule has found sick. Other initialisations than torch's cannot be told from trained weights and are left out.

    Source:
        Humbatova et al. 2020, Taxonomy of real faults in deep learning systems; the norm follows from He et al. 2015,
        arXiv 1502.01852, with torch's default gain.
    """

    code: ClassVar[str] = "EG110"
    symptom: ClassVar[str] = "frozen by mistake"
    source: ClassVar[str] = "Humbatova et al. 2020, Taxonomy of Real Faults in Deep Learning Systems"
    family: ClassVar[str] = "signal-cut"
    tells: ClassVar[Tells] = "cause"

    def judge(self, record: Record) -> Sign | None:
        """Compare the frozen weights with what an initialisation draws."""
        setup = record.setup
        if setup is None or not record.readings:
            return None
        found = _by_their_elements(setup)
        if not found and not any(reading.layers or reading.weights for reading in record.readings):
            return None
        found = found or _held_by_the_optimizer(record, setup) or _by_their_norms(record, setup)
        if not found or not set(record.parameters) - set(setup.frozen):
            return Sign(decades=0.0)
        return Sign(
            decades=WIDEST_DECADES,
            speaks=True,
            where=found,
            severity="warning",
            when=(record.readings[0].step, record.readings[-1].step),
            message=(
                f"{len(found)} layers are frozen with weights that nothing has trained: they are as they were drawn at "
                "random"
            ),
            evidence=(Evidence(name="frozen layers with random weights", value=float(len(found))),),
            cause="the layers were frozen without pretrained weights: load those first, or let the layers train",
        )

    def cures(self) -> tuple[Cure, ...]:
        """Propose to train what is frozen."""
        return EVERYTHING_TRAINED


def _by_their_elements(setup: Setup) -> tuple[str, ...]:
    frozen = frozenset(setup.frozen)
    return tuple(dict.fromkeys(name.rpartition(".")[0] or name for name in setup.untrained if name in frozen))


def _held_by_the_optimizer(record: Record, setup: Setup) -> tuple[str, ...]:
    """Name the modules of frozen parameters whose statistics the record has, if all of these are as drawn."""
    frozen = frozenset(setup.frozen)
    reading = next((one for one in record.readings if one.weights), None)
    if reading is None:
        return ()
    known = [one for one in reading.weights if one.name in frozen]
    return tuple(dict.fromkeys(one.name.rpartition(".")[0] for one in known)) if looks_untrained(known) else ()


def _by_their_norms(record: Record, setup: Setup) -> tuple[str, ...]:
    reading = next((one for one in record.readings if any(layer.weight_norm for layer in one.layers)), None)
    if reading is None:
        return ()
    untrained = layers_as_torch_draws_them(reading)
    frozen = {name.rpartition(".")[0] for name in setup.frozen if name.endswith(".weight")} & untrained
    found = tuple(dict.fromkeys(name for layer in reading.layers if (name := without_call(layer.name)) in frozen))
    wide = any(layer.units >= ENOUGH_UNITS for layer in reading.layers if without_call(layer.name) in frozen)
    return found if len(found) >= FEWEST_LAYERS or wide else ()
