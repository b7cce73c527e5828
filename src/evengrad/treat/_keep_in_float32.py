"""Compute a half-precision model in float32: all of it, or the parts that half precision does not suit."""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal, final, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from evengrad.nouns import SettingError, Task, TreatmentError, shortened
from evengrad.treat._abstract import AbstractTreatment, Change, Treated
from evengrad.treat._forward_order import is_norm, places, run
from evengrad.treat._on_a_copy import changed_copy, treated_copy
from evengrad.treat._on_a_task import built, first_input, task_with_model
from evengrad.treat._random_state import random_state_kept
from evengrad.treat._subclassed import derive_

Parts = Literal["unsafe", "all"]
HALF = frozenset({torch.float16, torch.bfloat16})
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
# They add up exponentials, which half precision does not hold.
SUMMING = (nn.Softmax, nn.LogSoftmax, nn.Softmin, nn.Softmax2d)


class Float32(nn.Module):
    """Run the forward in float32 and outside of autocast, and give its output in the precision of the input."""

    outer_dtype: torch.dtype

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module's own forward on float32 copies of its arguments."""
        first = next(_floating((args, kwargs)), None)
        parameter = next(self.parameters(), None)
        device = first.device if first is not None else parameter.device if parameter is not None else "cpu"
        with torch.autocast(torch.device(device).type, enabled=False):
            output = super().forward(*_cast(args, torch.float32), **_cast(kwargs, torch.float32))
        return _cast(output, self.outer_dtype if first is None else first.dtype)


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Float32Model:
    """Build a model and let modules of it run in float32; can be pickled if the factory can."""

    factory: Callable[[], nn.Module]
    label: str
    names: tuple[str, ...]

    def __call__(self) -> nn.Module:
        return changed_copy(self.label, partial(_keep_, self.names), self.factory(), batch_input=None).subject


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Float32Loss:
    """Compute a loss in float32 and outside of autocast; can be pickled if the loss can."""

    loss: Callable[[Any, Any], Tensor]

    def __call__(self, output: Any, target: Any) -> Tensor:
        first = next(_floating((output, target)), None)
        with torch.autocast("cpu" if first is None else first.device.type, enabled=False):
            return self.loss(_cast(output, torch.float32), _cast(target, torch.float32))

    def code(self) -> tuple[tuple[str, str, str, str], ...]:
        """Write what is done: definitions, what becomes of output and of target, what stands around the loss."""
        around = "with torch.autocast({}.device.type, enabled=False):"
        return tuple(("", "{}.float()", target, around) for target in ("{}", "{}.float()"))


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class KeepInFloat32(AbstractTreatment):
    """Compute a copy of a half-precision model in float32, or the parts of it that half precision does not suit.

    A part gets its weights in float32, computes in float32 outside of autocast, and gives its output in the precision
    that came in, so that its surroundings see no difference. Names and attributes stay: its class is derived from the
    module's. What the forward of the model itself computes between its modules stays in half precision.

    Args:
        parts: `unsafe`: norms, softmax, the last layer with weights and, in a task, the loss. `all`: every module that
            owns weights; in a task without autocast. Steps that are below the resolution of half-precision weights are
            kept by float32 ones.

    Raises:
        SettingError: The parts are unknown.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 4), nn.LayerNorm(4), nn.Linear(4, 1)).bfloat16()
        >>> treated = KeepInFloat32(parts="unsafe").treat(model)
        >>> treated.changes
        ('1, 2: in float32, with casts at both ends',)
        >>> treated.subject[1].weight.dtype, treated.subject(torch.ones(3, 2).bfloat16()).dtype
        (torch.float32, torch.bfloat16)

    Source:
        Micikevicius et al. 2018, arXiv 1710.03740, sections 3.1 and 3.3.
    """

    parts: Parts = "unsafe"

    changes_model: ClassVar[bool] = True
    blames: ClassVar[str] = "half precision"

    def __post_init__(self) -> None:
        if self.parts not in get_args(Parts):
            raise SettingError("parts", came=repr(self.parts), wanted=f"one of {', '.join(get_args(Parts))}")

    @property
    def effort(self) -> int:
        """2 for the unsafe parts, 3 for all."""
        return 2 if self.parts == "unsafe" else 3

    def treat(self, model: nn.Module, *, seed: int = 0, batch_input: Any = None) -> Treated[nn.Module]:
        """Let parts of a copy compute in float32: `AbstractTreatment.treat`."""
        return treated_copy(self, model, seed=seed, batch_input=batch_input)

    def change_(self, model: nn.Module, *, seed: int, batch_input: Any) -> Change:
        """Let parts compute in float32, in place."""
        return _keep_(self._names(model, batch_input, autocast=False), model)

    def treat_task(self, task: Task, *, seed: int = 0) -> Treated[Task]:
        """Let parts of a copy of the task compute in float32: `AbstractTreatment.treat_task`."""
        own_loop = getattr(task, "backward", None) is not None
        with random_state_kept():
            data = None if own_loop else first_input(task.train)
            torch.manual_seed(seed)
            model = built(task)
            names = self._names(model, data, autocast=task.autocast is not None)
            treated = changed_copy(self.label, partial(_keep_, names), model, batch_input=data)
        factory = Float32Model(factory=task.model, label=self.label, names=names)
        changed = task_with_model(self.label, task, factory, treated)
        said, code, subject = list(changed.changes), [changed.code], changed.subject
        if not own_loop:
            subject = replace(subject, loss=Float32Loss(loss=task.loss))
            said.append("the loss in float32")
            code.append("# in the loop: loss(output.float(), target)")
        if self.parts == "all" and task.autocast is not None:
            subject = replace(subject, autocast=None)
            said.append(f"no autocast to {task.autocast}")
            code.append("# in the loop: without torch.autocast")
        return Treated(subject=subject, changes=tuple(said), code="\n".join(code))

    def _names(self, model: nn.Module, data: Any, *, autocast: bool) -> tuple[str, ...]:
        """Choose the modules.

        Raises:
            TreatmentError: Nothing is computed in half precision, or there is none of the wanted kind.
        """
        if not autocast and not _has_half_weights(model) and not (data is not None and _runs_in_half(model, data)):
            raise TreatmentError(self.label, came="a model that is computed in float32", wanted="one in half precision")
        names = tuple(_owners(model)) if self.parts == "all" else _unsafe(model, data)
        names = tuple(name for name in names if not isinstance(model.get_submodule(name), Float32))
        if not names:
            raise TreatmentError(self.label, came="a model without such parts in half precision", wanted="some")
        return names


def _owners(model: nn.Module, name: str = "") -> Iterator[str]:
    """Name modules of torch as a whole, as they read the weights of their parts, and others that own weights."""
    whole = type(model).__module__.startswith("torch.") and not isinstance(model, CONTAINERS)
    if any(value.is_floating_point() for value in model.parameters(recurse=whole)):
        yield name
    if not whole:
        for key, child in model.named_children():
            yield from _owners(child, f"{name}.{key}".lstrip("."))


def _unsafe(model: nn.Module, data: Any) -> tuple[str, ...]:
    """Name norms, softmax and the output layer; where one is inside a module that torch composed, all of that."""
    wholes = [name for name in _owners(model) if any(True for _ in model.get_submodule(name).children())]
    wholes = [name for name in wholes if name and type(model.get_submodule(name)).__module__.startswith("torch.")]
    last = next((place.name for place in reversed(places(model, data)) if place.weighted), None)
    unsafe = [
        name for name, module in model.named_modules() if is_norm(module) or isinstance(module, SUMMING) or name == last
    ]
    around = [next((whole for whole in wholes if name.startswith(f"{whole}.")), name) for name in unsafe]
    return tuple(dict.fromkeys(around))


CODE = """\
def cast(x, dtype):
    if isinstance(x, tuple | list):
        return type(x)(cast(item, dtype) for item in x)
    return x.to(dtype) if torch.is_tensor(x) and x.is_floating_point() else x


class Float32:
    def forward(self, *args):
        outer = next((x.dtype for x in args if torch.is_tensor(x) and x.is_floating_point()), self.outer_dtype)
        with torch.autocast(args[0].device.type, enabled=False):
            return cast(super().forward(*cast(args, torch.float32)), outer)


for name in {names!r}:
    module = model.get_submodule(name)
    module.outer_dtype = next((value.dtype for value in module.parameters()), torch.float32)
    kind = type(module)
    module.float().__class__ = type('Float32' + kind.__name__, (Float32, kind), dict())"""


def _keep_(names: tuple[str, ...], model: nn.Module) -> Change:
    """Derive the classes of the named modules and turn their weights to float32."""
    was = {name: _precision(model.get_submodule(name)) for name in names}
    for name in names:
        module = model.get_submodule(name)
        module.float()
        derive_(module, Float32, "KeepInFloat32()")
        module.outer_dtype = was[name]  # type: ignore[assignment]
    code = CODE.format(names=list(names))
    said = shortened(tuple(name or "the model" for name in names))
    return Change(changes=(f"{said}: in float32, with casts at both ends",), code=code)


def _precision(module: nn.Module) -> torch.dtype:
    return next((value.dtype for value in module.parameters() if value.is_floating_point()), torch.float32)


def _has_half_weights(model: nn.Module) -> bool:
    return any(value.dtype in HALF for value in model.parameters())


def _runs_in_half(model: nn.Module, data: Any) -> bool:
    """Tell whether a module gives half precision, because of an autocast in the model."""
    seen: set[torch.dtype] = set()

    def note(_module: nn.Module, _args: Any, output: Any) -> None:
        seen.update(value.dtype for value in _floating(output))

    with random_state_kept(), torch.no_grad():
        scratch = copy.deepcopy(model).eval()
        for module in scratch.modules():
            module.register_forward_hook(note)
        run(scratch, data)
    return bool(seen & HALF)


def _floating(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
        return
    for item in value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple | list) else ():
        yield from _floating(item)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """Cast the floating-point tensors of a structure, and keep the structure."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, PackedSequence):
        return value._replace(data=_cast(value.data, dtype))
    if isinstance(value, Mapping):
        return type(value)({key: _cast(item, dtype) for key, item in value.items()})  # type: ignore[call-arg]
    if isinstance(value, tuple | list):
        items = [_cast(item, dtype) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value
