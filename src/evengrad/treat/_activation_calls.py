"""Modules in the place of the activation functions that a forward of the user's own calls."""

import copy
import inspect
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from evengrad.nouns import TreatmentError, output_of
from evengrad.treat._activations import is_custom_activation
from evengrad.treat._random_state import random_state_kept
from evengrad.treat._traced import REWRITTEN_CODE, has_own_forward, in_words, rewrite_, traced


@final
class Exponential(nn.Module):
    """Raise e to the input, as `torch.exp`.

    Example:
        >>> Exponential()(torch.zeros(2))
        tensor([1., 1.])
    """

    def forward(self, x: Tensor) -> Tensor:
        """Exponentiate each number."""
        return torch.exp(x)


# The module of each function, by the function's name, and the names of what is given behind the input.
_MODULES: dict[str, tuple[type[nn.Module], tuple[str, ...]]] = {
    "relu": (nn.ReLU, ("inplace",)),
    "relu6": (nn.ReLU6, ("inplace",)),
    "leaky_relu": (nn.LeakyReLU, ("negative_slope", "inplace")),
    "elu": (nn.ELU, ("alpha", "inplace")),
    "selu": (nn.SELU, ("inplace",)),
    "celu": (nn.CELU, ("alpha", "inplace")),
    "gelu": (nn.GELU, ("approximate",)),
    "silu": (nn.SiLU, ("inplace",)),
    "mish": (nn.Mish, ("inplace",)),
    "softplus": (nn.Softplus, ("beta", "threshold")),
    "softsign": (nn.Softsign, ()),
    "tanh": (nn.Tanh, ()),
    "sigmoid": (nn.Sigmoid, ()),
    "logsigmoid": (nn.LogSigmoid, ()),
    "hardtanh": (nn.Hardtanh, ("min_val", "max_val", "inplace")),
    "hardsigmoid": (nn.Hardsigmoid, ("inplace",)),
    "hardswish": (nn.Hardswish, ("inplace",)),
    "softmax": (nn.Softmax, ("dim",)),
    "log_softmax": (nn.LogSoftmax, ("dim",)),
    "exp": (Exponential, ()),
}
_FUNCTIONS: dict[Any, str] = {
    getattr(holder, name + ending): name
    for name in _MODULES
    for holder in (torch, functional, torch.special)
    for ending in ("", "_")
    if callable(getattr(holder, name + ending, None))
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """A call of an activation function for which a child module stands now.

    Args:
        owner: The name of the module whose forward it is.
        kind: The name of that module's class.
        node: The name of the call in the traced graph.
        child: The name of the child.
        function: What is called: `tanh`.
        text: The call as it may stand in the source: `tanh(self.first(x))`.
        given: What it is given: `self.first(x)`.
    """

    owner: str
    kind: str
    node: str
    child: str
    function: str
    text: str = ""
    given: str = ""

    @property
    def name(self) -> str:
        """The dotted name of the child."""
        return f"{self.owner}.{self.child}" if self.owner else self.child


def calls_as_modules_(
    model: nn.Module, batch_input: Any, *, whole: bool = False
) -> tuple[tuple[Call, ...], tuple[str, ...]]:
    """Put a module that gives the same numbers in the place of each activation function that is called.

    Forwards are traced one by one, each with what it calls as it is: where one cannot be traced, the others still are.
    A rewritten forward stays only if the model gives the same output, to the bit, in evaluation mode and, where it runs
    in it, in training mode.

    Args:
        model: Changed in place.
        batch_input: The input of a batch.
        whole: Whether to leave modules of the user's own alone that are an activation as a whole.

    Returns:
        The calls, and why each forward that was not rewritten was not.

    Cost:
        Up to four forward passes on copies, and as many for each forward when one of them is not what it was.
    """
    found: dict[str, tuple[Call, ...]] = {}
    refused: list[str] = []
    for name, module in model.named_modules():
        if whole and is_custom_activation(module):
            continue
        if not has_own_forward(module) or "parametrizations" in name.split("."):
            continue
        try:
            found[name] = _calls_of(name, module)
        except TreatmentError as err:
            refused.append(f"{err.what}: {err.came}")
    found = {name: calls for name, calls in found.items() if calls}
    before = _outputs(model, batch_input) if found else []
    done = _put_in_(model, found, before, batch_input)
    refused += [
        f"{calls[0].kind}.forward: another output when it is traced"
        for name, calls in found.items()
        if name not in done
    ]
    return tuple(call for name in done for call in found[name]), tuple(dict.fromkeys(refused))


def give_back_(model: nn.Module, calls: Iterable[Call]) -> None:
    """Let functions be called again in the place of the modules."""
    for call in calls:
        owner = model.get_submodule(call.owner)
        rewrite_(owner, {call.node: ""})
        delattr(owner, call.child)


def calls_code(calls: Iterable[Call], new: str) -> str:
    """Write the lines that put a new module, as `nn.Tanh()`, in the place of calls."""
    by_owner: dict[str, dict[str, str]] = {}
    said: list[str] = []
    for call in calls:
        by_owner.setdefault(call.owner, {})[call.node] = call.child
        instead = call.given if new == "nn.Identity()" else f"{new}({call.given})"
        said.append(f"# in {call.kind}.forward: {instead} instead of {call.text}\n")
    return (
        f"{''.join(dict.fromkeys(said))}"
        f"for name, calls in {list(by_owner.items())!r}:\n"
        "    block = model.get_submodule(name)\n"
        "    for child in calls.values():\n"
        f"        block.add_module(child, {new})\n"
        "    block.forward = Rewritten(block, getattr(block.forward, 'calls', {}) | calls)"
    )


def with_rewriting(code: str) -> str:
    """Put what `calls_code` uses before code, if it is not there."""
    return code if "class Rewritten" in code else f"{REWRITTEN_CODE}\n\n{code}"


def function_name(function: object) -> str | None:
    """Name an activation function of torch; None for anything else."""
    return _FUNCTIONS.get(function)


def _calls_of(name: str, module: nn.Module) -> tuple[Call, ...]:
    """Find the calls in the graph of both modes; one mode may lack some, and none may be another one's twin."""
    graphs = []
    mode = module.training
    try:
        for training in (True, False):
            module.training = training
            graphs.append({node.name: node for node in traced(module).nodes if _module_for(node) is not None})
    finally:
        module.training = mode
    counts = [Counter(_function(node) for node in nodes.values()) for nodes in graphs]
    unclear = {key for key in counts[0] & counts[1] if counts[0][key] != counts[1][key]}
    known = getattr(vars(module).get("forward"), "calls", {})
    nodes = {**graphs[1], **graphs[0]}
    return tuple(
        Call(
            owner=name,
            kind=type(module).__name__,
            node=key,
            child=_free(module, key),
            function=_function(node) or "",
            text=in_words(node, 2),
            given=in_words(node.all_input_nodes[0], 1),
        )
        for key, node in nodes.items()
        if key not in known and _function(node) not in unclear
    )


def _free(module: nn.Module, node: str) -> str:
    name = f"call_{node}"
    while hasattr(module, name):
        name += "_"
    return name


def _function(node: fx.Node) -> str | None:
    if node.op == "call_function":
        return _FUNCTIONS.get(node.target)
    if node.op == "call_method":
        name = str(node.target).removesuffix("_")
        return name if name in _MODULES and callable(getattr(Tensor, name, None)) else None
    return None


def _module_for(node: fx.Node) -> nn.Module | None:
    """Make the module that does what a call does; None if there is none."""
    function = _function(node)
    if function is None or len(node.all_input_nodes) != 1 or not node.users:
        return None
    make, names = _MODULES[function]
    given = dict(node.kwargs)
    given.update(zip(names, node.args[1:], strict=False))
    source = node.all_input_nodes[0]
    if _in_place(node, given) and list(source.users) != [node]:
        return None  # what else reads the input would no longer see it changed
    wanted = {key: value for key, value in given.items() if key in inspect.signature(make).parameters}
    wanted.pop("inplace", None)
    known = {"input", "inplace", "_stacklevel", "dtype", *wanted}
    if len(node.args) > len(names) + 1 or set(given) - known or given.get("dtype") is not None:
        return None
    return make(**wanted)


def _in_place(node: fx.Node, given: dict[str, Any]) -> bool:
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return given.get("inplace") is True or name.endswith("_")


def _put_in_(
    model: nn.Module, found: dict[str, tuple[Call, ...]], before: list[Any], batch_input: Any
) -> tuple[str, ...]:
    """Rewrite all forwards together; where the output is another one then, one by one, and keep those that fit."""
    for calls in found.values():
        _put_(model, calls)
    if not found or _same(_outputs(model, batch_input), before):
        return tuple(found)
    for calls in found.values():
        give_back_(model, calls)
    done = []
    for name, calls in found.items():
        _put_(model, calls)
        if _same(_outputs(model, batch_input), before):
            done.append(name)
        else:
            give_back_(model, calls)
    return tuple(done)


def _put_(model: nn.Module, calls: tuple[Call, ...]) -> None:
    if not calls:
        return
    owner = model.get_submodule(calls[0].owner)
    nodes: dict[str, fx.Node] = {}
    mode = owner.training
    for training in (True, False):
        owner.training = training
        nodes.update({node.name: node for node in traced(owner).nodes})
    owner.training = mode
    for call in calls:
        made = _module_for(nodes[call.node])
        if made is None:
            raise AssertionError(call.node)
        owner.add_module(call.child, made.train(mode))
    rewrite_(owner, {call.node: call.child for call in calls})


def _outputs(model: nn.Module, batch_input: Any) -> list[Any]:
    """Run copies of a model in both modes from the same random state; an error is an output too."""
    outputs: list[Any] = []
    for training in (False, True):
        with random_state_kept(), torch.no_grad():
            try:
                outputs.append(output_of(copy.deepcopy(model).train(training), batch_input))
            except Exception as err:  # user code: anything may come, as from a batch norm and one sample
                outputs.append(type(err).__name__)
    return outputs


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return (
            one.shape == other.shape and one.dtype == other.dtype and torch.allclose(one, other, 0, 0, equal_nan=True)
        )
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, tuple | list) and isinstance(other, tuple | list):
        return len(one) == len(other) and all(map(_same, one, other))
    return type(one) is type(other) and (isinstance(one, Tensor) or not isinstance(one, str) or one == other)
