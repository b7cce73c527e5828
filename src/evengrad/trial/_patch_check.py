"""What an edited factory makes, held against what the treated task makes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from evengrad.nouns import EvengradError, Task, output_of
from evengrad.trial._patch_source import NoPatchError
from evengrad.trial._seeded import seeded
from evengrad.trial._user_code import first_batch

SEED = 0
MOST_STEPS = 100


def check_model(make: Callable[[], Any], treated: Task, *, words: bool) -> None:
    """Want the model that the treated task makes: modules, parameters, and outputs with equal weights.

    Args:
        make: The edited factory.
        treated: The treated task.
        words: Whether only words were changed: then the weights from one seed must be equal too, and modules without
            any state may be others, as a function that is called may stand for one.

    Raises:
        NoPatchError: It makes something else, or raises.
    """
    wanted = made_or_refused(treated.model, "the treated factory")
    came = made_or_refused(make, "the edited factory")
    if not isinstance(came, nn.Module):
        raise NoPatchError(f"the edited factory makes a {type(came).__name__}")
    _want_equal(_modules(came, all_of_them=not words), _modules(wanted, all_of_them=not words), "modules")
    _want_equal(_tensors(came), _tensors(wanted), "parameters or buffers")
    if words and not _equal_weights(came, wanted):
        raise NoPatchError("the edited factory makes other weights from the same seed")
    made_or_refused(lambda: came.load_state_dict(wanted.state_dict()), "taking over the treated weights")
    _want_equal_outputs(came, wanted, treated)


def check_optimizer(make: Callable[[nn.Module], Any], treated: Task) -> None:
    """Want the optimizer that the treated task makes: class and settings of its groups.

    Raises:
        NoPatchError: It makes something else, or raises.
    """
    model = made_or_refused(treated.model, "the treated factory")
    wanted: Optimizer = made_or_refused(lambda: treated.optimizer(model), "the treated optimizer")
    came = made_or_refused(lambda: make(model), "the edited optimizer")
    if type(came) is not type(wanted):
        raise NoPatchError(f"the edited optimizer is a {type(came).__name__}")
    if len(came.param_groups) != len(wanted.param_groups):
        raise NoPatchError("the edited optimizer has other groups of parameters")
    for one, other in zip(came.param_groups, wanted.param_groups, strict=True):
        if [id(value) for value in one["params"]] != [id(value) for value in other["params"]]:
            raise NoPatchError("the edited optimizer has other parameters")
        _want_equal_settings(one, other)


def check_step(step: Callable[[nn.Module], Any], treated: Task) -> None:
    """Want what the treated task does to the weights after a step.

    Raises:
        NoPatchError: It does something else, or raises.
    """
    if treated.after_step is None:
        raise AssertionError(treated)
    wanted = made_or_refused(treated.model, "the treated factory")
    with torch.no_grad():
        for parameter in wanted.parameters():
            parameter.mul_(100.0)  # so that a bound is passed
    came = copy.deepcopy(wanted)
    treated.after_step(wanted)
    made_or_refused(lambda: step(came), "the edited after_step")
    if not _equal_weights(came, wanted):
        raise NoPatchError("the edited after_step does something else to the weights")


def check_schedule(make: Callable[[Optimizer], Any], treated: Task) -> None:
    """Want the learning rates that the treated task takes its first steps with.

    Raises:
        NoPatchError: They are others, or it raises.
    """
    if treated.schedule is None:
        raise AssertionError(treated)
    steps = min(treated.steps, MOST_STEPS)
    came, wanted = (_rates(one, treated, steps) for one in (make, treated.schedule))
    if any(abs(one - other) > 1e-9 * abs(other) for one, other in zip(came, wanted, strict=True)):
        raise NoPatchError("the edited schedule gives other learning rates")


def _rates(schedule: Callable[[Optimizer], Any], treated: Task, steps: int) -> list[float]:
    """List the rates that each step is taken with; the gradients are zero."""
    optimizer: Optimizer = made_or_refused(lambda: treated.optimizer(treated.model()), "the optimizer")
    made = made_or_refused(lambda: schedule(optimizer), "the schedule")
    rates: list[float] = []
    optimizer.register_step_pre_hook(
        lambda one, _args, _kwargs: rates.extend(float(group["lr"]) for group in one.param_groups)
    )
    for _ in range(steps):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        made_or_refused(made.step, "the schedule")
    return rates


def made_or_refused(make: Callable[[], Any], what: str, *, seed: int = SEED) -> Any:
    """Make something by code of the user's with edits in it, from one seed.

    Raises:
        NoPatchError: It raises.
    """
    with seeded(seed):
        try:
            return make()
        except Exception as err:  # user code with edits in it: anything may come
            raise NoPatchError(f"{what} raises {type(err).__name__}: {err}"[:300]) from err


def _modules(model: nn.Module, *, all_of_them: bool) -> list[tuple[str, str, int]]:
    """List name, kind, and the first place of each module.

    The kind is the class of torch that a module's class is or is derived from; others, as those that a snippet defines,
    may be called differently.
    """
    places: dict[int, int] = {}
    listed = []
    for name, module in model.named_modules(remove_duplicate=False):
        if not all_of_them and not module.state_dict():
            continue
        kind = next((one for one in type(module).__mro__[:-2] if vars(nn).get(one.__name__) is one), None)
        said = "own" if kind is None else f"{kind.__name__}({module.extra_repr()})"
        listed.append((name, said, places.setdefault(id(module), len(places))))
    return listed


def _tensors(model: nn.Module) -> list[tuple[Any, ...]]:
    places: dict[int, int] = {}
    parameters = model.named_parameters(remove_duplicate=False)
    buffers = model.named_buffers(remove_duplicate=False)
    return [
        (name, *_form(value), value.requires_grad, places.setdefault(id(value), len(places)))
        for name, value in (*parameters, *buffers)
    ]


def _form(value: Tensor) -> tuple[Any, ...]:
    return tuple(value.shape), value.dtype, str(value.device)


def _equal_weights(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(not isinstance(a, Tensor) or _same(a, b) for a, b in pairs)


def _same(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one.double(), other.double(), rtol=1e-6, atol=0.0, equal_nan=True)


def _want_equal(came: list[Any], wanted: list[Any], what: str) -> None:
    if came != wanted:
        raise NoPatchError(f"the edited factory makes other {what} than the treated task")


def _want_equal_settings(came: dict[str, Any], wanted: dict[str, Any]) -> None:
    keys = (set(came) | set(wanted)) - {"params", "initial_lr"}
    for key in keys:
        one, other = came.get(key), wanted.get(key)
        close = isinstance(one, float) and isinstance(other, float) and abs(one - other) <= 1e-12 * abs(other)
        if not close and one != other:
            raise NoPatchError(f"the edited optimizer has {key}={one!r}, not {other!r}")


def _want_equal_outputs(came: nn.Module, wanted: nn.Module, treated: Task) -> None:
    """Compare outputs on the first batch; without one, or with outputs of other kinds, there is nothing to compare."""
    if getattr(treated, "backward", None) is not None:  # a loop of the user's own: nobody else knows what a batch is
        return
    with seeded(SEED):
        try:
            inputs = first_batch(treated)[0]
        except EvengradError:
            return
    for training in (False, True):
        try:
            right = _output(wanted, inputs, training)
        except Exception as err:  # a model that does not run in this mode, a batch norm with one sample say
            if not training:
                raise NoPatchError(f"the treated model raises {type(err).__name__}") from err
            return
        left = made_or_refused(partial(_output, came, inputs, training), "the edited model")
        if not _alike(left, right):
            raise NoPatchError("the edited model gives other outputs than the treated one")


def _alike(one: Any, other: Any) -> bool:
    """Compare outputs, but for what rounding may do to them; what holds no tensors is taken to be alike."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        if (one.shape, one.dtype) != (other.shape, other.dtype):
            return False
        bound = 16 * torch.finfo(one.dtype).eps if one.is_floating_point() else 0.0
        scale = float(other.abs().nan_to_num().max()) if bound and other.numel() else 1.0
        return torch.allclose(one.double(), other.double(), rtol=bound, atol=bound * scale, equal_nan=True)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return list(one) == list(other) and all(_alike(one[key], other[key]) for key in one)
    if isinstance(one, tuple | list) and isinstance(other, tuple | list):
        return len(one) == len(other) and all(_alike(a, b) for a, b in zip(one, other, strict=True))
    return type(one).__name__ == type(other).__name__


def _output(model: nn.Module, inputs: Any, training: bool) -> Any:
    with seeded(SEED), torch.no_grad():
        return output_of(copy.deepcopy(model).train(training), inputs)
