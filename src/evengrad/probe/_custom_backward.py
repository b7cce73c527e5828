"""Whether autograd functions of the user's own compute the gradient of what they compute."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from evengrad.nouns import output_of
from evengrad.probe._left_as_found import left_as_found
from evengrad.probe._loss_graph import is_custom

MOST_NODES = 20_000  # of the graph that are looked at
MOST_ELEMENTS = 50_000_000  # of a model that is copied in float64: 400 MB
MOST_PARAMETERS = 64
MOST_CALLS = 2  # of each function that are tried

STEP = 1e-5  # relative; the second is half of it: errors of float64 are 1e-11 then, and those of the step 1e-10
AGREES = 1e-3  # two difference quotients that differ by more are of a jump or a kink
DIFFERS = 0.01  # a backward that is off by more is not one of rounding
NEARLY_ZERO = 1e-7  # of the scale of what is differentiated

Errors = tuple[tuple[str, str, float], ...]
"""Function, parameter, and the gradient over what it should be; the parameter is empty where it is not known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Judged:
    """What one function is like.

    Args:
        ratio: Of its gradient to the difference quotient, where they differ; None where they agree.
        on_purpose: Whether it is meant to have another gradient: it gives back its input as it is (a reversal, a clip
            of the gradient), or is flat or jumps (a rounding that gradients go straight through).
    """

    ratio: float | None = None
    on_purpose: bool = False


def custom_functions(loss: Tensor) -> tuple[type, ...]:
    """Find the autograd functions in the graph of a loss that are not torch's own."""
    found: dict[type, None] = {}
    seen = {loss.grad_fn}
    todo: list[Any] = [loss.grad_fn]
    while todo and len(seen) < MOST_NODES:
        node = todo.pop()
        if node is None:
            continue
        if is_custom(node):
            found[node._forward_cls] = None
        for following, _ in node.next_functions:
            if following not in seen:
                seen.add(following)
                todo.append(following)
    return tuple(found)


def custom_backward_errors(
    model: nn.Module, loss: Callable[[Any, Any], Tensor], batch: tuple[Any, Any], functions: Sequence[type]
) -> Errors:
    """Compare gradients with difference quotients, in a float64 copy of the model.

    Each function is tried by itself first, on what it was called with: in a random direction of each argument, at two
    step sizes. Where its forward is flat or jumps, or gives its argument back as it is, its backward is meant to be
    something else, and nothing is said of it. Where one is wrong, the loss is differentiated in a random direction of
    each parameter, and those are named whose gradient is off by more than 1 %.

    Args:
        model: Left as it is.
        loss: `loss(model(input), target)`.
        batch: (input, target).
        functions: Those to be tried, as `custom_functions` finds them.

    Returns:
        Function, parameter and how much too large its gradient is; where functions that are off on purpose stand beside
        a wrong one, the function with an empty parameter. Nothing where the model does not run in float64.

    Cost: A copy of the model in float64, one forward, some calls of the functions; where one is wrong a backward, and
        four forwards for each of at most 64 parameters.
    """
    if not functions or sum(parameter.numel() for parameter in model.parameters()) > MOST_ELEMENTS:
        return ()
    try:
        with left_as_found(model):
            twin = copy.deepcopy(model).double()
            return _errors(twin, loss, (_doubled(batch[0]), _doubled(batch[1])), functions)
    except Exception as err:  # anything may come of code that was never meant to run in float64
        logging.getLogger(__name__).debug("the backward of %s could not be checked: %s", functions, err)
        return ()


def _errors(
    model: nn.Module, loss: Callable[[Any, Any], Tensor], batch: tuple[Any, Any], functions: Sequence[type]
) -> Errors:
    calls: list[tuple[type, tuple[Any, ...]]] = []

    def value() -> Tensor:
        with left_as_found(model):
            return loss(output_of(model, batch[0]), batch[1])

    with torch.enable_grad(), _recorded(functions, calls):
        value()
    judged = [(function.__name__, _judged(function, args)) for function, args in calls]
    wrong = {name: one.ratio for name, one in judged if one.ratio is not None}
    if not wrong:
        return ()
    if any(one.on_purpose for _, one in judged):
        return tuple((name, "", ratio) for name, ratio in wrong.items())
    ratios = _wrong_parameters(model, value)
    return tuple((" and ".join(wrong), name, ratio) for name, ratio in ratios.items())


@contextmanager
def _recorded(functions: Sequence[type], calls: list[tuple[type, tuple[Any, ...]]]) -> Iterator[None]:
    """Note what each function is called with: its forward stands in for itself until the block ends."""
    own = [(function, function.__dict__.get("forward")) for function in functions]
    try:
        for function in functions:
            function.forward = staticmethod(_recording(function, function.forward, calls))  # type: ignore[attr-defined]
        yield
    finally:
        for function, forward in own:
            if forward is None:
                del function.forward  # type: ignore[attr-defined]
            else:
                function.forward = forward  # type: ignore[attr-defined]


def _recording(
    function: type, forward: Callable[..., Any], calls: list[tuple[type, tuple[Any, ...]]]
) -> Callable[..., Any]:
    takes_context = getattr(function, "setup_context", None) is torch.autograd.Function.setup_context

    def recording(*args: Any) -> Any:
        if sum(known is function for known, _ in calls) < MOST_CALLS:
            calls.append((function, tuple(map(_cloned, args[1:] if takes_context else args))))
        return forward(*args)

    return recording


def _cloned(value: Any) -> Any:
    return value.detach().clone().requires_grad_(value.requires_grad) if isinstance(value, Tensor) else value


def _doubled(value: Any) -> Any:
    """Copy a batch with its floating-point numbers in float64."""
    if isinstance(value, Tensor):
        return value.detach().double() if value.is_floating_point() else value
    if isinstance(value, Mapping):
        return {key: _doubled(item) for key, item in value.items()}
    if isinstance(value, tuple | list) and not hasattr(value, "_fields"):
        return type(value)(_doubled(item) for item in value)
    return value


def _judged(function: Any, args: tuple[Any, ...]) -> _Judged:
    """Try one function on the arguments of one call."""
    places = [place for place, one in enumerate(args) if isinstance(one, Tensor) and one.requires_grad]

    def outputs(moved: Mapping[int, Tensor]) -> list[Tensor]:
        given = [moved.get(place, one) for place, one in enumerate(map(_cloned, args))]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            found = function.apply(*given)
        found = found if isinstance(found, tuple) else (found,)
        return [one for one in found if isinstance(one, Tensor) and one.requires_grad]

    given = {place: args[place].detach().clone().requires_grad_() for place in places}
    with torch.enable_grad():
        # A function may change its argument in place, and a leaf cannot be changed.
        found = outputs({place: one * 1.0 for place, one in given.items()})
        if any(torch.equal(one, args[place]) for one in found for place in places):
            return _Judged(on_purpose=True)
        pulls = [_drawn(one, seed) for seed, one in enumerate(found)]
        gradients = torch.autograd.grad(_dot(found, pulls), list(given.values()), allow_unused=True)
    judged = _Judged()
    for place, gradient in zip(places, gradients, strict=True):
        if gradient is None:
            continue

        def along(step: Tensor, place: int = place) -> list[Tensor]:
            with torch.enable_grad():
                return outputs({place: (args[place].detach() + step).requires_grad_() * 1.0})

        one = _compared(along, args[place].detach(), gradient, pulls)
        if one.on_purpose or one.ratio is not None:
            judged = one
    return judged


def _compared(
    along: Callable[[Tensor], list[Tensor]], argument: Tensor, gradient: Tensor, pulls: list[Tensor]
) -> _Judged:
    """Compare a gradient with difference quotients along a random direction, where the function is not flat."""
    direction = _drawn(argument, 17)
    step = STEP * (float(argument.square().mean().sqrt()) or 1.0)
    slopes = _slopes(along, direction * step, step)
    for slope in slopes:
        if slope.shape == argument.shape and bool((slope == 0).any()):
            direction = torch.where(slope == 0, 0.0, direction)  # what is flat here may be meant to pass gradients
    slopes = _slopes(along, direction * step, step)
    halves = _slopes(along, direction * (step / 2), step / 2)
    first, second = float(_dot(slopes, pulls)), float(_dot(halves, pulls))
    scale = float(torch.stack([slope.norm() * pull.norm() for slope, pull in zip(slopes, pulls, strict=True)]).sum())
    computed = float((gradient * direction).sum())
    if abs(first) <= NEARLY_ZERO * scale or abs(first - second) > AGREES * abs(first):
        return _Judged(on_purpose=bool((gradient != 0).any()))
    return _Judged(ratio=computed / first if _differs(computed, first) else None)


def _slopes(along: Callable[[Tensor], list[Tensor]], change: Tensor, step: float) -> list[Tensor]:
    with torch.no_grad():
        ahead, behind = ([one.detach() for one in along(sign * change)] for sign in (1.0, -1.0))
        return [(one - other) / (2 * step) for one, other in zip(ahead, behind, strict=True)]


def _wrong_parameters(model: nn.Module, value: Callable[[], Tensor]) -> dict[str, float]:
    """Find the parameters whose gradient is not the slope of the loss, with the ratio of the two."""
    named = {name: one for name, one in model.named_parameters() if one.requires_grad}
    chosen = dict(list(named.items())[:: max(1, -(-len(named) // MOST_PARAMETERS))])
    with torch.enable_grad():
        loss = value()
        gradients = torch.autograd.grad(loss.sum(), list(chosen.values()), allow_unused=True)
    wrong: dict[str, float] = {}
    scale = NEARLY_ZERO * abs(float(loss.detach().sum()))
    for seed, ((name, parameter), gradient) in enumerate(zip(chosen.items(), gradients, strict=True)):
        direction = _drawn(parameter, seed)
        direction /= direction.norm()
        size = float(parameter.detach().norm()) or 1.0
        first, second = (_quotient(parameter, direction, step * size, value) for step in (STEP, STEP / 2))
        computed = 0.0 if gradient is None else float((gradient * direction).sum())
        smooth = abs(first) * size > scale and abs(first - second) <= AGREES * abs(first)
        if smooth and _differs(computed, first):
            wrong[name] = computed / first
    return wrong


def _quotient(parameter: nn.Parameter, direction: Tensor, step: float, value: Callable[[], Tensor]) -> float:
    kept = parameter.detach().clone()
    with torch.no_grad():
        values = []
        for sign in (1.0, -1.0):
            parameter.copy_(kept + sign * step * direction)
            values.append(float(value().sum()))
        parameter.copy_(kept)
    return (values[0] - values[1]) / (2 * step)


def _differs(computed: float, measured: float) -> bool:
    return abs(computed - measured) > DIFFERS * max(abs(computed), abs(measured))


def _dot(tensors: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
    return torch.stack([(one * other).sum() for one, other in zip(tensors, others, strict=True)]).sum()


def _drawn(like: Tensor, seed: int) -> Tensor:
    """Draw a random tensor that is the same each time, without touching anybody's random state."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like.device)
