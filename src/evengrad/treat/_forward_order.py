"""The order in which a model uses its modules: recorded from a forward pass, or as they were registered."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from evengrad.nouns import TreatmentError, in_words, output_of
from evengrad.treat._activations import activation_name
from evengrad.treat._random_state import random_state_kept

DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """One module at one place of the forward pass.

    Args:
        name: The first of the module's dotted names.
        module: The module itself, of the model that was asked about.
        weighted: Whether it owns a parameter of two or more dimensions; an embedding does not count.
        activation: Its name if it is an activation of torch.
        norm: Whether it normalises.
        input_is: What is known about its input: `direct` when it is the untouched output of the weighted module before,
            `rectified` when it is non-negative with exact zeros, otherwise `unknown`.
        input_shape: Shape of the first tensor that goes into it; None when not recorded.
        output_shape: Shape of the first tensor that comes out; None when not recorded.
    """

    name: str
    module: nn.Module
    weighted: bool
    activation: str | None
    norm: bool
    input_is: str = "unknown"
    input_shape: tuple[int, ...] | None = None
    output_shape: tuple[int, ...] | None = None


def places(model: nn.Module, batch_input: Any = None) -> tuple[Place, ...]:
    """List the modules that compute something, in the order in which the model uses them.

    Without a batch it is the order of registration, which is the order of use in an `nn.Sequential` and in most models.
    A module that is used several times has several places with a batch, and one without. Modules that a batch does not
    reach are left out, except that all count when nothing is reached.

    Raises:
        TreatmentError: The model does not run on the batch.
    """
    registered = tuple(_place(name, module) for name, module in _working(model))
    return registered if batch_input is None else _recorded(model, registered, batch_input) or registered


def followed_by_weighted(order: tuple[Place, ...], module: nn.Module) -> bool:
    """Tell whether, wherever the module is used, a weighted one comes later."""
    last_weighted = max((index for index, place in enumerate(order) if place.weighted), default=-1)
    used = [index for index, place in enumerate(order) if place.module is module]
    return bool(used) and max(used) < last_weighted


def names_of(model: nn.Module, module: nn.Module) -> tuple[str, ...]:
    """List every dotted name of a module: a shared one has several."""
    return tuple(name for name, found in model.named_modules(remove_duplicate=False) if found is module)


def parent_of(model: nn.Module, name: str) -> nn.Module:
    """Return the module that holds the named one."""
    return model.get_submodule(name.rpartition(".")[0])


def inside_torch(model: nn.Module, name: str) -> bool:
    """Tell whether a composed layer of torch holds the module: those read their children's weights by attribute."""
    parent = parent_of(model, name)
    composed = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
    containers = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
    return isinstance(parent, composed) or (
        type(parent).__module__.startswith(("torch.nn.", "torch.ao.")) and not isinstance(parent, containers)
    )


def is_sequence(module: nn.Module) -> bool:
    """Tell whether a module is an `nn.Sequential` that runs its entries one after the other and does nothing else."""
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def only_in_sequences(model: nn.Module, name: str) -> bool:
    """Tell whether all that holds a module are plain sequences: then no forward reads what is inside it."""
    return all(is_sequence(model.get_submodule(above)) for above in _above(name))


def in_one_sequence(model: nn.Module, first: str, second: str) -> bool:
    """Tell whether all that holds two modules, up to what holds both, are plain sequences."""
    above_first, above_second = _above(first), _above(second)
    common = [name for name in above_first if name in above_second]
    holders = {*above_first[len(common) - 1 :], *above_second[len(common) - 1 :]}
    return all(is_sequence(model.get_submodule(name)) for name in holders)


def _above(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(len(parts))]


def _working(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in model.named_modules():
        if "parametrizations" in name.split("."):
            continue
        if not any(True for _ in module.children()) or _is_weighted(module):
            yield name, module


def _place(name: str, module: nn.Module) -> Place:
    return Place(
        name=name,
        module=module,
        weighted=_is_weighted(module),
        activation=activation_name(module),
        norm=is_norm(module),
    )


def is_norm(module: nn.Module) -> bool:
    """Tell whether a module normalises, by its class or, for those outside torch, by its class name."""
    return "norm" in type(module).__name__.lower() and not any(True for _ in module.children())


def _is_weighted(module: nn.Module) -> bool:
    if isinstance(module, nn.Embedding | nn.EmbeddingBag) or is_norm(module):
        return False
    return parametrize.is_parametrized(module) or any(weight.dim() > 1 for weight in module.parameters(recurse=False))


def _recorded(model: nn.Module, registered: tuple[Place, ...], batch_input: Any) -> tuple[Place, ...]:
    with random_state_kept(), torch.no_grad():
        scratch = copy.deepcopy(model).eval()
        recorder = _Recorder()
        for place in registered:
            recorder.watch(place, scratch.get_submodule(place.name))
        run(scratch, batch_input)
    return recorder.in_order()


def run(model: nn.Module, batch_input: Any) -> Any:
    """Call the model on the input of a batch.

    Raises:
        TreatmentError: It raised.
    """
    try:
        return output_of(model, batch_input)
    except Exception as err:  # user code: anything may come
        raise TreatmentError(
            "model(batch_input)",
            came=in_words(err),
            wanted="a model that runs on the batch",
            advice="give the input that the model takes, on the model's device",
        ) from err


def shapes_into(model: nn.Module, names: tuple[str, ...], batch_input: Any) -> dict[str, tuple[int, ...]]:
    """Record the shape of the first tensor that goes into each named module; those not reached are left out."""
    shapes: dict[str, tuple[int, ...]] = {}
    if batch_input is None or not names:
        return shapes
    with random_state_kept(), torch.no_grad():
        scratch = copy.deepcopy(model).eval()
        for name in names:

            def before(_module: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
                tensor = first_tensor((args, kwargs))
                if tensor is not None and not tensor.is_nested:
                    shapes.setdefault(name, tuple(tensor.shape))

            scratch.get_submodule(name).register_forward_pre_hook(before, with_kwargs=True)
        run(scratch, batch_input)
    return shapes


class _Recorder:
    """Notes each use of a module, in the order in which they begin."""

    def __init__(self) -> None:
        self._uses: list[tuple[Place, str]] = []
        self._into: dict[str, tuple[int, ...]] = {}
        self._out_of: dict[str, tuple[int, ...]] = {}
        self._last_output: tuple[Tensor, int] | None = None

    def watch(self, place: Place, module: nn.Module) -> None:
        def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            came = first_tensor((args, kwargs))
            if came is not None and not came.is_nested:
                self._into.setdefault(place.name, tuple(came.shape))
            self._uses.append((place, self._input_is(came) if place.weighted else "unknown"))

        def after(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
            tensor = first_tensor(output)
            if tensor is not None and not tensor.is_nested:  # whose shape cannot be told
                self._out_of.setdefault(place.name, tuple(tensor.shape))
                if place.weighted:
                    self._last_output = (tensor, tensor._version)

        module.register_forward_pre_hook(before, with_kwargs=True)
        module.register_forward_hook(after)

    def _input_is(self, came: Tensor | None) -> str:
        if came is None or came.is_nested or not came.is_floating_point() or came.numel() == 0:
            return "unknown"
        if self._last_output is not None:
            output, version = self._last_output
            same = came.untyped_storage().data_ptr() == output.untyped_storage().data_ptr()
            if same and came._version == version:  # a view counts; an activation in place raises the version
                return "direct"
        return "rectified" if float(came.min()) == 0.0 else "unknown"

    def in_order(self) -> tuple[Place, ...]:
        return tuple(
            replace(
                place,
                input_is=input_is,
                input_shape=self._into.get(place.name),
                output_shape=self._out_of.get(place.name),
            )
            for place, input_is in self._uses
        )


def first_tensor(value: Any) -> Tensor | None:
    """Find the first tensor in what goes into a module or comes out of it; a packed sequence gives its data."""
    if isinstance(value, Tensor):
        return value
    items = value.values() if isinstance(value, dict) else value if isinstance(value, tuple | list) else ()
    return next((tensor for item in items if (tensor := first_tensor(item)) is not None), None)
