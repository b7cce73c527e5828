"""How long the gates of recurrent layers are to remember: a number, or what the sequences of a batch ask for."""

from collections.abc import Iterable
from math import isfinite
from typing import Any

from torch import nn

from evengrad.nouns import TreatmentError
from evengrad.treat._recurrent_draws import RecurrentDraw, gates_of
from evengrad.treat._sequence_lengths import sequence_lengths


def is_forget_bias(value: Any) -> bool:
    """Tell whether a setting can be a forget bias."""
    if value is None or value == "chrono":
        return True
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def recurrent_draws(
    label: str,
    model: nn.Module,
    names: Iterable[str],
    batch_input: Any,
    *,
    forget_bias: float | str | None,
    gain: float | None = None,
) -> dict[str, RecurrentDraw]:
    """Choose how each named recurrent layer is drawn.

    Args:
        label: The treatment's, for the error.
        model: What the layers are in.
        names: Their dotted names.
        batch_input: The input of a batch, or None.
        forget_bias: A number, `chrono`, or None: `chrono` with a batch and 1 without. A layer that the batch does not
            reach gets 1.
        gain: Of the hidden-to-hidden weights; None for 1.

    Raises:
        TreatmentError: `chrono` without a batch, or the model does not run on it.
    """
    if forget_bias == "chrono" and batch_input is None:
        raise TreatmentError(label, came="no batch", wanted="batch_input: it shows how long the sequences are")
    kept = tuple(names)
    gated = [name for name in kept if _is_gated(model.get_submodule(name))]
    by_length = forget_bias in {None, "chrono"} and batch_input is not None and gated
    lengths = sequence_lengths(model, gated, batch_input) if by_length else {}
    number = float(forget_bias) if isinstance(forget_bias, int | float) else 1.0
    return {
        name: RecurrentDraw(gain=1.0 if gain is None else gain, remember=number, steps=lengths.get(name))
        for name in kept
    }


def _is_gated(module: nn.Module) -> bool:
    return isinstance(module, nn.RNNBase | nn.RNNCellBase) and gates_of(module) > 1
