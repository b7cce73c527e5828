"""Treating a copy: the original stays as it is, and no broken model is handed out."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from evengrad.nouns import TreatmentError, in_words, output_of, shortened
from evengrad.treat._abstract import AbstractTreatment, Change, Treated
from evengrad.treat._forward_order import is_norm, only_in_sequences, run
from evengrad.treat._random_state import random_state_kept


def treated_copy(treatment: AbstractTreatment, model: nn.Module, *, seed: int, batch_input: Any) -> Treated[nn.Module]:
    """Copy the model, let the treatment change the copy, and look at what came out: `changed_copy`."""

    def change(copied: nn.Module) -> Change:
        return treatment.change_(copied, seed=seed, batch_input=batch_input)

    return changed_copy(treatment.label, change, model, batch_input=batch_input)


def changed_copy(
    label: str, change_: Callable[[nn.Module], Change], model: nn.Module, *, batch_input: Any
) -> Treated[nn.Module]:
    """Copy the model, change the copy in place, and look at what came out.

    Raises:
        TreatmentError: Nothing was to be changed, a weight that was kept is not finite, or the copy does not run.
    """
    with random_state_kept(), torch.no_grad():
        changed = _copied(model)
        change = change_(changed)
        _want_finite(changed, label)
        if batch_input is not None:
            _want_same_interface(model, changed, batch_input, label)
    return Treated(subject=changed, changes=change.changes, code=change.code)


def nothing_found(treatment: AbstractTreatment, wanted: str, advice: str = "") -> TreatmentError:
    """Make the error for a model in which nothing is to be changed."""
    return TreatmentError(treatment.label, came=f"a model without {wanted}", wanted="one", advice=advice)


def only_for_tasks(treatment: AbstractTreatment) -> TreatmentError:
    """Make the error for a treatment of the training that was given a model."""
    return TreatmentError(
        treatment.label, came="a model", wanted="a task", advice="this changes the training: call treat_task"
    )


def not_run(model: nn.Module, names: tuple[str, ...], batch_input: Any) -> tuple[str, ...]:
    """Say which wrapped layers a forward of the user's own uses, if there is no batch to run the changed model on."""
    if batch_input is not None:
        return ()
    unsure = tuple(name for name in names if not only_in_sequences(model, name))
    if not unsure:
        return ()
    return (
        f"{shortened(unsure)}: not run for want of batch_input; "
        "a forward that reads the weight of a wrapped layer will raise AttributeError",
    )


def _copied(model: nn.Module) -> nn.Module:
    if any(is_lazy(parameter) for parameter in model.parameters()):
        raise TreatmentError(
            "model", came="parameters without a shape yet", wanted="a built model", advice="run it on a batch first"
        )
    try:
        return copy.deepcopy(model)
    except Exception as err:  # user code: anything may come
        raise TreatmentError(
            "model", came=in_words(err, when="while it was copied"), wanted="a model that can be copied"
        ) from err


def _want_finite(model: nn.Module, label: str) -> None:
    bad = [name for name, value in _kept(model) if not bool(torch.isfinite(value).all())]
    if bad:
        raise TreatmentError(
            label,
            came=f"weights that are not finite and would be kept: {shortened(tuple(bad))}",
            wanted="finite weights",
            advice="start from a fresh model",
        )


def _kept(model: nn.Module) -> list[tuple[str, Tensor]]:
    """List parameters and the statistics of norms; other buffers may hold infinities on purpose, as masks do."""
    statistics = [
        (f"{name}.{key}", value)
        for name, module in model.named_modules()
        if is_norm(module)
        for key, value in module.named_buffers(recurse=False)
    ]
    return [*model.named_parameters(), *statistics]


def _want_same_interface(model: nn.Module, changed: nn.Module, batch_input: Any, label: str) -> None:
    for training in (False, True):
        try:
            before = _shape_of(run(copy.deepcopy(model).train(training), batch_input))
        except TreatmentError:
            if training:
                return  # a batch norm and one sample, say: then no change can be blamed for it
            raise
        try:
            after = _shape_of(output_of(copy.deepcopy(changed).train(training), batch_input))
        except Exception as err:  # what a user's forward raises when a layer is no longer what it was
            raise TreatmentError(
                label,
                came=in_words(err, when="when the changed model was run"),
                wanted="a model whose forward lets its layers be wrapped or replaced",
            ) from err
        if before != after:
            raise TreatmentError(label, came=f"an output of shape {after}", wanted=f"{before} as before")


def _shape_of(output: Any) -> Any:
    if isinstance(output, Tensor):
        return tuple(output.shape)
    if isinstance(output, Mapping):
        return {str(key): _shape_of(value) for key, value in output.items()}
    if isinstance(output, tuple | list):
        return tuple(_shape_of(value) for value in output)
    return type(output).__name__
