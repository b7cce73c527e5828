"""EG108: the gradient ends on its way back although trained weights lie behind."""

from collections.abc import Sequence
from math import isfinite
from typing import ClassVar, final

from evengrad.diagnose._abstract import AbstractRunRule, Sign, Tells
from evengrad.diagnose._half import ran_in_float16
from evengrad.diagnose._initial import layers_as_torch_draws_them, looks_untrained
from evengrad.diagnose._places import last_layers
from evengrad.diagnose._profile import WIDEST_DECADES, without_call
from evengrad.diagnose._proposals import EVERYTHING_TRAINED
from evengrad.diagnose._trend import trend_of
from evengrad.diagnose.rules._dead_units import RECTIFIERS
from evengrad.nouns import Cure, Evidence, Reading, Record, without_last_look

# A layer that starts at zero passes zeros until its first step; that none of several readings saw more is no accident.
FEWEST_SAMPLED = 3


@final
class SignalCut(AbstractRunRule):
    """Signal cut: trained weights get no gradient at all, for no path leads back to them.

    Sees:
        Layers that ran and whose weights the optimizer holds, but whose output got no gradient in any reading (none,
        not a small one), where they are all that lies in front of everything that did get one: a `detach()`, a
        `no_grad`, an `argmax` or a copy stands between. The rule speaks when these weights are as they were drawn,
        or the loss does not fall. It also speaks when the whole gradient is exactly zero at every step although the
        loss is not, and no unit is dead: a softmax over a single number, for one, is always 1. And it speaks when what
        reaches such a front is a gradient of exactly zero at every step, with no unit dead or saturated that would
        explain it: a `round`, a `sign` or a product with zero stands between.

    Hurts:
        What is in front of the cut keeps its first random weights. The rest learns from random features, or nothing
        does.

    Cure:
        A change of the code: find what cuts the graph between the layer named and the next one. For a single output
        take a sigmoid (`binary_cross_entropy_with_logits`), or give the softmax two. Parts in plain lists or left
        frozen: TrainEverything.

    False alarms:
        Frozen parts and what no optimizer holds are not judged, nor a side branch that is not used, such as a pooler,
        an idle expert or a head for another task. A pretrained body that runs under `no_grad` on purpose, although
        the optimizer holds it, keeps the rule silent while the loss falls. A layer that starts at zero cuts nothing:
        it passes a gradient that is zero, until it moves.

    Source:
        Torch's notes on autograd mechanics; Goodfellow, Bengio and Courville 2016, Deep Learning, section 6.5.
    """

    code: ClassVar[str] = "EG108"
    symptom: ClassVar[str] = "signal cut"
    source: ClassVar[str] = "Goodfellow, Bengio and Courville 2016, Deep Learning, section 6.5"
    family: ClassVar[str] = "signal-cut"
    tells: ClassVar[Tells] = "harm"

    def judge(self, record: Record) -> Sign | None:
        """Look for a gradient that is zero throughout, then for a front that none reaches."""
        measured = [one for one in record.readings if one.grad_norms and all(map(isfinite, one.grad_norms))]
        sampled = [one for one in measured if one.layers and all(layer.output_finite for layer in one.layers)]
        if not measured:
            return None
        if all(not any(one.grad_norms) for one in measured):
            return _all_zero(measured, sampled, record)
        if not sampled or record.setup is None or len(record.parameters) != len(sampled[0].grad_norms):
            return None  # without a set-up nobody knows what is frozen
        front, behind = _front(measured, sampled, record)
        if not front:
            front, behind = _zero_front(measured, sampled, record)
            return _told_of_zeros(front, behind, sampled, measured) if front else Sign(decades=0.0)
        if not _untrained(sampled[0], front) and not _stuck(record):
            return Sign(decades=0.0)
        return _told_of_a_front(front, behind, sampled, measured)

    def cures(self) -> tuple[Cure, ...]:
        """Propose to train everything: what cuts the signal in the code is not reached."""
        return EVERYTHING_TRAINED


def _all_zero(measured: Sequence[Reading], sampled: Sequence[Reading], record: Record) -> Sign | None:
    """Tell a gradient that was exactly zero at every step, unless units are dead or there is nothing left to learn."""
    losses = [one.loss for one in measured if one.loss is not None and isfinite(one.loss)]
    if not losses or not any(losses) or any(is_dead(one) for one in sampled) or cleared(sampled, record):
        return None
    ends = next((one.ends for one in measured if one.ends is not None), None)
    cause = ""
    if ends is not None and ends.softmax_size == 1:
        cause = (
            "a mistake in the code: the softmax goes over a single number, so it is 1 whatever that is; use a sigmoid "
            "(binary_cross_entropy_with_logits), or two outputs, or the right dimension"
        )
    elif _never_called(sampled):
        cause = "a mistake in the code: backward is never called, or on something that the layers do not lead to"
    elif ends is not None and ends.cuts:
        cause = f"a mistake in the code: {'; '.join(ends.cuts)}"
    count = len(record.parameters) or len(measured[0].grad_norms)
    return Sign(
        decades=WIDEST_DECADES,
        speaks=True,
        where=last_layers(sampled[-1]) if sampled else ("loss",),
        when=(measured[0].step, measured[-1].step),
        message=f"the gradient of all {count} parameters is exactly zero at every step seen, and the loss is not",
        evidence=(
            Evidence(name="steps with a gradient of zero", value=float(len(measured))),
            Evidence(name="loss at the last of them", value=losses[-1]),
        ),
        cause=cause,
    )


def _never_called(sampled: Sequence[Reading]) -> bool:
    """Tell whether no gradient, not even a zero, has arrived at the output of any layer in any sampled reading."""
    return len(sampled) >= FEWEST_SAMPLED and all(
        layer.grad_rms is None for reading in sampled for layer in reading.layers
    )


def cleared(sampled: Sequence[Reading], record: Record) -> tuple[str, ...]:
    """Name layers whose output got a gradient although their bias has none: it has been there, and was cleared.

    The gradient of a bias is the sum of that at the output; only chance could make it exactly zero.
    """
    frozen = frozenset(() if record.setup is None else record.setup.frozen)
    biases = {name.rpartition(".")[0] for name in record.parameters if name.endswith(".bias") and name not in frozen}
    return tuple(
        dict.fromkeys(
            name
            for reading in sampled
            for layer in reading.layers
            if layer.weighted and layer.grad_rms and (name := without_call(layer.name)) in biases
        )
    )


def is_dead(reading: Reading) -> bool:
    """Tell whether a layer passes nothing by itself: rectifiers that are all zero, or units with no slope left."""
    return any(
        (layer.nonlinearity in RECTIFIERS and max(layer.dead_frac, layer.zero_frac) >= 1.0)
        or (layer.saturated_frac is not None and layer.saturated_frac >= 1.0)
        for layer in reading.layers
    )


def _front(
    measured: Sequence[Reading], sampled: Sequence[Reading], record: Record
) -> tuple[dict[str, tuple[str, ...]], str]:
    """List the layers in front of the first one that a gradient reaches, with their weights, and name that one.

    Empty when any of them is not trained, or gets a gradient in any reading: then it is no cut.
    """
    reached = {without_call(layer.name) for one in sampled for layer in one.layers if layer.grad_rms is not None}
    moved = [any(one.grad_norms[index] for one in measured) for index in range(len(record.parameters))]
    frozen = frozenset(() if record.setup is None else record.setup.frozen)
    own: dict[str, list[str]] = {}
    for name, has in zip(record.parameters, moved, strict=True):
        module = name.rpartition(".")[0].partition(".parametrizations")[0] or "(model)"
        if has:
            reached.add(module)
        if name not in frozen:
            own.setdefault(module, []).append(name)
    front: dict[str, tuple[str, ...]] = {}
    for layer in sampled[0].layers:
        name = without_call(layer.name)
        if name in reached and layer.weighted:
            return front, name
        if layer.weighted and name in own:
            front[name] = tuple(own[name])
    return {}, ""


def _zero_front(
    measured: Sequence[Reading], sampled: Sequence[Reading], record: Record
) -> tuple[dict[str, tuple[str, ...]], str]:
    """List the layers at whose output the gradient is a zero, never more, with weights that never had one.

    They are all that lies in front of the first layer whose weights have one. A layer that starts at zero passes zeros
    only until it moves, so several sampled readings are needed; units that are dead or saturated pass none either.
    """
    if len(sampled) < FEWEST_SAMPLED or any(is_dead(one) for one in sampled):
        return {}, ""
    if "float16" in {record.dtype, *(one.dtype for one in sampled[-1].weights)} or any(map(ran_in_float16, sampled)):
        return {}, ""  # zeros there are what is too small for it
    if any(one.weight_rms == 0.0 and not one.name.endswith("bias") for one in sampled[-1].weights):
        return {}, ""  # it has not moved yet, as in a warm-up
    moved = {
        name.rpartition(".")[0].partition(".parametrizations")[0]
        for index, name in enumerate(record.parameters)
        if any(one.grad_norms[index] for one in measured)
    }
    largest: dict[str, float | None] = {}
    for reading in sampled:
        for layer in reading.layers:
            name = without_call(layer.name)
            known = largest.get(name)
            largest[name] = layer.grad_rms if known is None else max(known, layer.grad_rms or 0.0)
    frozen = frozenset(() if record.setup is None else record.setup.frozen)
    front: dict[str, tuple[str, ...]] = {}
    for layer in sampled[0].layers:
        name = without_call(layer.name)
        if not layer.weighted:
            continue
        if name in moved:
            return front, name
        own = tuple(one for one in record.parameters if one.rpartition(".")[0] == name and one not in frozen)
        if largest[name] != 0.0 or not own:
            return {}, ""
        front[name] = own
    return {}, ""


def _told_of_zeros(
    front: dict[str, tuple[str, ...]], behind: str, sampled: Sequence[Reading], measured: Sequence[Reading]
) -> Sign:
    last = next(reversed(front))
    count = sum(len(names) for names in front.values())
    message = (
        f"the gradient that reaches `{last}` and all in front of it is exactly zero: {count} parameters of "
        f"{len(front)} layers had none in any of {len(without_last_look(measured))} steps; `{behind}` behind it has one"
    )
    cause = (
        f"a mistake in the code: an operation between `{last}` and `{behind}` has a slope of zero; look there for "
        "round(), sign(), floor(), a comparison, one_hot(argmax()) or a product with zero"
    )
    return _front_sign(front, ("layers with a gradient of zero", message, cause), sampled, measured)


def _untrained(reading: Reading, front: dict[str, tuple[str, ...]]) -> bool:
    """Tell whether the weights of the front are as an initialisation draws them."""
    names = {name for weights in front.values() for name in weights}
    return looks_untrained(one for one in reading.weights if one.name in names) or set(
        front
    ) <= layers_as_torch_draws_them(reading)


def _stuck(record: Record) -> bool:
    trend = trend_of(record)
    return trend is not None and trend.from_start and not trend.fell and not trend.still_falling


def _told_of_a_front(
    front: dict[str, tuple[str, ...]], behind: str, sampled: Sequence[Reading], measured: Sequence[Reading]
) -> Sign:
    last = next(reversed(front))
    count = sum(len(names) for names in front.values())
    message = (
        f"no gradient reaches `{last}` or anything in front of it: {count} parameters of {len(front)} layers that "
        f"the optimizer holds had none in any of {len(without_last_look(measured))} steps; `{behind}` behind it has one"
    )
    cause = (
        f"a mistake in the code: the graph ends between `{last}` and `{behind}`; look there for detach(), .data, "
        "torch.no_grad(), argmax(), .item() or .numpy()"
    )
    return _front_sign(front, ("layers without a gradient", message, cause), sampled, measured)


def _front_sign(
    front: dict[str, tuple[str, ...]],
    said: tuple[str, str, str],
    sampled: Sequence[Reading],
    measured: Sequence[Reading],
) -> Sign:
    """Make the sign of a front that does not learn, from what is counted, the message and the cause."""
    counted, message, cause = said
    return Sign(
        decades=WIDEST_DECADES,
        speaks=True,
        where=tuple(front),
        when=(measured[0].step, measured[-1].step),
        message=message,
        evidence=(
            Evidence(name=counted, value=float(len(front))),
            Evidence(name="steps whose layers were read", value=float(len(sampled))),
        ),
        cause=cause,
    )
