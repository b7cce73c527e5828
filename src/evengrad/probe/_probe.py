"""One forward and one backward, watched, on copies of nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from evengrad.nouns import (
    BadDataError,
    BatchError,
    Ends,
    LossError,
    ModelError,
    ParameterReading,
    Reading,
    Record,
    in_words,
    output_of,
)
from evengrad.probe._custom_backward import Errors, custom_backward_errors, custom_functions
from evengrad.probe._ends import EndsSample
from evengrad.probe._kinds import plain_name
from evengrad.probe._left_as_found import left_as_found
from evengrad.probe._parameter_norms import ParameterNorms
from evengrad.probe._setup import setup_of
from evengrad.probe._statistics import is_additive_mask
from evengrad.probe._unscaled import unscaled
from evengrad.probe._watch import Watch, all_finite
from evengrad.probe._weights import WeightSampler

MOST_OF_AN_END = 1 << 20  # elements of an input, output or target that are read


def probe(
    model: nn.Module,
    loss: Callable[[Any, Any], Tensor],
    batch: Any,
    *,
    step: int = 0,
    allow_broken_loss: bool = False,
    check_backward: bool = False,
    optimizers: Sequence[Optimizer] = (),
    loss_scale: float = 1.0,
) -> Record:
    """Take a full reading of one batch: one forward, one backward, and everything left as found to the bit.

    Gradients are computed beside the parameters' own (`torch.autograd.grad`), so `.grad` is not touched; buffers,
    modes, hooks and random state are restored. The model runs in the mode that it is in, so dropout and batch
    normalisation behave as they would in training if it is in training mode.

    Args:
        model: Any module with parameters. A compiled model runs eagerly here.
        loss: `loss(model(input), target)`, a scalar.
        batch: (input, target). An input that is a tuple is spread over the model's arguments, a mapping over its
            keyword arguments (`output_of`).
        step: The step number to write in the reading.
        allow_broken_loss: Whether to take a reading of the forward alone where NaN or infinities are why there is no
            more: the loss raised or has no graph after an output that is not finite, as `nn.BCELoss` does, or the
            forward raised after a module whose output is not finite, as `torch.distributions` does. The reading then
            has the loss NaN and no gradients, and its layers end where the forward ended. Everything else raises as it
            does otherwise, which is the default because a loss that raises is more often a mistake in a program. On
            CUDA some losses stop the device instead of raising; nothing can be read after that.
        check_backward: Whether autograd functions of the user's own are compared with difference quotients, where there
            are any (`custom_backward_errors`); it costs a copy of the model and some forwards.
        optimizers: Those that train the model, for the set-up.
        loss_scale: What the training multiplies the loss with before its backward; so does this one, and the gradients
            in the reading are divided by it.

    Returns:
        A record of one reading with the layers in the order of the forward pass, the parameters and their gradients, of
        which nobody can say what a step does to them, both ends of the model, and the set-up.

    Raises:
        ModelError: The model has no parameters, or its forward or backward raised.
        BatchError: The batch is not a pair, is empty or not finite (an additive mask of minus infinities may be), or
            its labels are out of range.
        LossError: The loss is not a scalar tensor, has no graph, or raised.

    Cost: one forward and backward, about five passes over each activation and two over each gradient, in host memory
        (some ten elsewhere), one over weights and their gradients; a copy of 4,096 elements of each parameter and
        gradient.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
        >>> record = probe(model, nn.functional.mse_loss, (torch.zeros(3, 4), torch.ones(3, 2)))
        >>> [layer.name for layer in record.readings[0].layers]
        ['0', '1', '2']
    """
    parameters = named_parameters(model)
    data, target = checked_batch(batch)
    trained = [parameter for parameter in parameters.values() if parameter.requires_grad]
    functions: tuple[type, ...] = ()
    with left_as_found(model), torch.enable_grad(), torch.compiler.set_stance("force_eager"):
        with Watch(model) as watch:
            output, value = _watched_loss(watch, loss, (data, target), allow_broken_loss=allow_broken_loss)
        sample = EndsSample(data, output, target, value, most=MOST_OF_AN_END)
        if value is not None and check_backward:
            functions = custom_functions(value)
        del output
        scaled = value if value is None or loss_scale == 1.0 else value * loss_scale
        found = None if scaled is None else _backward(model, scaled, [*trained, *watch.inputs])
    gradients: dict[Tensor, Tensor | None] | None = None if found is None else dict(zip(trained, found, strict=False))
    norms = ParameterNorms(parameters.values(), gradients)
    reading = Reading(
        step=step,
        loss=float("nan"),
        layers=watch.readings(norms),
        weights=_weights(parameters, model, gradients or {}),
        ends=_ends(sample, custom_backward_errors(model, loss, (data, target), functions)),
    )
    if value is not None and gradients is not None:
        grad_norms = norms.of_gradients(parameters.values())
        total_norm = sum(one * one for one in grad_norms) ** 0.5
        reading = replace(reading, loss=float(value.detach()), grad_norms=grad_norms, total_norm=total_norm)
    return Record(
        readings=(reading if loss_scale == 1.0 else unscaled(reading, loss_scale),),
        parameters=tuple(parameters),
        dtype=str(next(iter(parameters.values())).dtype).removeprefix("torch."),
        setup=setup_of(model, optimizers, parameters),
    )


def named_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name every parameter, tied ones once.

    Raises:
        ModelError: There is none, or none that is trained.
    """
    parameters = {plain_name(name): value for name, value in model.named_parameters()}
    if not parameters:
        raise ModelError("model", came=f"{type(model).__name__} without parameters", wanted="a model with parameters")
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise ModelError(
            "model",
            came=f"{len(parameters)} parameters, none with requires_grad",
            wanted="at least one parameter that is trained",
            advice="call model.requires_grad_() or check which parts you froze",
        )
    return parameters


def checked_batch(batch: Any) -> tuple[Any, Any]:
    """Take a batch apart into input and target.

    Raises:
        BatchError: It is not a pair, or its tensors are empty or not finite.
    """
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        came = f"{type(batch).__name__}" + (f" of {len(batch)} items" if isinstance(batch, tuple | list) else "")
        raise BatchError("batch", came=came, wanted="a pair (input, target)")
    for part, value in zip(("input", "target"), batch, strict=True):
        for tensor in _tensors(value):
            _check_tensor(f"batch {part}", tensor)
    return batch[0], batch[1]


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [tensor for item in value.values() for tensor in _tensors(item)]
    if isinstance(value, tuple | list):
        return [tensor for item in value for tensor in _tensors(item)]
    return []


def _check_tensor(what: str, tensor: Tensor) -> None:
    if tensor.numel() == 0:
        raise BatchError(what, came=f"an empty tensor of shape {tuple(tensor.shape)}", wanted="at least one sample")
    if tensor.is_floating_point() or tensor.is_complex():
        bad = int((~torch.isfinite(tensor.detach())).sum())
        if bad and not bool(is_additive_mask(tensor)):
            raise BadDataError(
                what,
                came=f"{bad} of {tensor.numel()} values that are NaN or infinite",
                wanted="finite numbers",
                advice="look at how the data is read and scaled",
            )


def _watched_loss(
    watch: Watch, loss: Callable[[Any, Any], Tensor], batch: tuple[Any, Any], *, allow_broken_loss: bool
) -> tuple[Any, Tensor | None]:
    """Run forward and loss; None where what is not finite has kept them from giving one, and that is tolerated."""
    data, target = batch
    try:
        output = _forward(watch.model, data)
    except ModelError:
        if allow_broken_loss and watch.saw_non_finite():
            return None, None
        raise
    excused = allow_broken_loss and not all_finite(output)
    try:
        value = _called(loss, output, target)
    except LossError:
        if excused:
            return output, None
        raise
    value = _scalar(value)
    if excused and not value.requires_grad:
        return output, None
    return output, _with_graph(value)


def _forward(model: nn.Module, data: Any) -> Any:
    try:
        return output_of(model, data)
    except Exception as err:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in _tensors(data)) or type(data).__name__
        raise ModelError(
            f"forward of {type(model).__name__}",
            came=in_words(err),
            wanted=f"an output for an input of shape {shapes}",
        ) from err


def _backward(model: nn.Module, value: Tensor, wanted: list[Tensor]) -> tuple[Tensor | None, ...]:
    try:
        return torch.autograd.grad(value, wanted, allow_unused=True)
    except RuntimeError as err:
        raise ModelError(
            f"backward of {type(model).__name__}",
            came=in_words(err),
            wanted="a graph that can be differentiated by torch.autograd.grad",
            advice="look for tensors changed in place, and checkpoint(use_reentrant=True)",
        ) from err


def _called(loss: Callable[[Any, Any], Tensor], output: Any, target: Any) -> Any:
    try:
        return loss(output, target)
    except Exception as err:
        _check_labels(output, target, err)
        raise LossError(
            "loss(output, target)",
            came=in_words(err),
            wanted=f"a scalar for an output of shape {_shape(output)} and a target of shape {_shape(target)}",
        ) from err


def _scalar(value: Any) -> Tensor:
    if not isinstance(value, Tensor) or value.numel() != 1:
        came = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise LossError("loss(output, target)", came=came, wanted="a scalar tensor", advice="take the mean")
    return value.reshape(())


def _with_graph(value: Tensor) -> Tensor:
    if not value.requires_grad:
        raise LossError(
            "loss(output, target)",
            came="a loss without a graph",
            wanted="a loss that depends on the parameters through differentiable operations",
            advice="look for .detach(), .item(), argmax or torch.no_grad() between the model and the loss",
        )
    return value


def _check_labels(output: Any, target: Any, cause: Exception) -> None:
    """Say that labels are out of range where that is why the loss raised."""
    if not isinstance(cause, IndexError) or not isinstance(output, Tensor) or not isinstance(target, Tensor):
        return  # torch raises IndexError for a label that is out of range, and other errors for shapes
    if output.ndim < 2 or target.is_floating_point() or target.is_complex() or target.numel() == 0:
        return
    dense = output.ndim == 2 or target.shape == output.shape[:1] + output.shape[2:]
    classes = output.shape[1 if dense else -1]  # a loss that flattens a sequence has its classes last
    low, high = int(target.min()), int(target.max())
    if low < 0 or high >= classes:
        raise BatchError(
            "batch target",
            came=f"labels from {low} to {high}",
            wanted=f"labels from 0 to {classes - 1}: the output has {classes} classes",
        ) from cause


def _shape(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__


def _weights(
    parameters: Mapping[str, nn.Parameter], model: nn.Module, gradients: Mapping[Tensor, Tensor | None]
) -> tuple[ParameterReading, ...]:
    sampler = WeightSampler(parameters, model)
    sampler.before(gradients=gradients)
    return sampler.readings(sampler.packed().tolist())


def _ends(sample: EndsSample, errors: Errors) -> Ends:
    return replace(sample.readings(sample.packed().tolist()), wrong_backward=errors)
