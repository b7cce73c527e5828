"""A module's own forward traced by torch.fx, and child modules put where it calls functions."""

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, final

import torch
from torch import Tensor, fx, nn

from evengrad.nouns import TreatmentError
from evengrad.treat._random_state import random_state_kept

REWRITTEN_CODE = """\
import inspect
import torch.fx


class OwnForward(torch.fx.Tracer):
    def is_leaf_module(self, module, name):
        return True


class Rewritten:  # a module's forward in which child modules stand where it calls functions
    def __init__(self, module, calls):
        self.module, self.calls, self.made = module, calls, {}

    def __call__(self, *args, **kwargs):
        given = inspect.signature(type(self.module).forward).bind(self.module, *args, **kwargs)
        given.apply_defaults()
        fixed = {k: v for k, v in given.arguments.items() if v is None or isinstance(v, (bool, str))}
        key = (self.module.training, *fixed.items())
        if key not in self.made:
            self.made[key] = self.traced(fixed)
        return self.made[key](*given.arguments.values())

    def traced(self, fixed):
        graph = OwnForward().trace(self.module, fixed)
        for node in graph.nodes:
            if node.name in self.calls:
                node.op, node.target = 'call_module', self.calls[node.name]
                node.args, node.kwargs = (node.all_input_nodes[0],), {}
        return type(torch.fx.GraphModule(self.module, graph)).forward

    def __getstate__(self):
        return {'module': self.module, 'calls': self.calls, 'made': {}}
"""
SIGNS = {"add": "+", "sub": "-", "mul": "*", "truediv": "/", "matmul": "@", "iadd": "+", "imul": "*"}


@final
class OwnForward(fx.Tracer):
    """Trace one forward; each module that it calls is one node, whatever is inside it."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Take every module as it is."""
        return True

    def create_arg(self, a: Any) -> Any:
        """Refuse a tensor that the forward makes while it is traced: it would be the same one in every call."""
        if isinstance(a, Tensor) and not self._is_held(a):
            raise fx.proxy.TraceError("it makes a tensor that does not depend on its input")
        return super().create_arg(a)

    def _is_held(self, tensor: Tensor) -> bool:
        held = (*self.root.parameters(), *self.root.buffers(), *self.tensor_attrs)
        return any(tensor is one for one in held)


@final
class Rewritten:
    """A module's forward in which child modules stand where it calls functions.

    It is put in the place of the bound method (`module.forward = Rewritten(module, calls)`): class, attributes, hooks,
    parameter names and modes of the module stay, and the copy of a model calls the copy of the module. The forward
    is traced anew for each mode (so that `self.training` is what it is) and for each combination of arguments that are
    None, a bool or a string, when it is first called in that way, also after copying and unpickling.

    Args:
        module: The module, which has the children.
        calls: The name of a child for each name of a node of the traced graph, `relu_1` for the second relu.
    """

    def __init__(self, module: nn.Module, calls: Mapping[str, str]) -> None:
        self.module = module
        self.calls = dict(calls)
        self._made: dict[tuple[Any, ...], Callable[..., Any]] = {}

    @property
    def __signature__(self) -> inspect.Signature:
        """The signature of the forward, for callers that look at it."""
        signature = inspect.signature(type(self.module).forward)
        return signature.replace(parameters=list(signature.parameters.values())[1:])

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the forward."""
        given = inspect.signature(type(self.module).forward).bind(self.module, *args, **kwargs)
        given.apply_defaults()
        fixed = constants(given.arguments)
        pattern = (self.module.training, *fixed.items())
        if pattern not in self._made:
            self._made[pattern] = self._traced(fixed)
        return self._made[pattern](*given.arguments.values())

    def _traced(self, fixed: dict[str, Any]) -> Callable[..., Any]:
        graph = trace(self.module, fixed)
        for node in graph.nodes:
            if node.name in self.calls:
                node.op, node.target = "call_module", self.calls[node.name]
                node.args, node.kwargs = (node.all_input_nodes[0],), {}
        compiled: Callable[..., Any] = type(fx.GraphModule(self.module, graph)).forward
        return compiled

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what was compiled: a copy and another process trace the forward again."""
        return {"module": self.module, "calls": self.calls, "_made": {}}


def has_own_forward(module: nn.Module) -> bool:
    """Tell whether a module's forward is the user's, and written in Python."""
    if isinstance(module, torch.jit.ScriptModule) or not inspect.isfunction(type(module).forward):
        return False
    return not (getattr(type(module).forward, "__module__", None) or "torch.").startswith("torch.")


def trace(module: nn.Module, fixed: Mapping[str, Any]) -> fx.Graph:
    """Trace a module's own forward in the mode that it is in.

    Args:
        module: Left as it is.
        fixed: Arguments that are constants: None, a bool or a string.

    Raises:
        TreatmentError: It cannot be traced, or it changes its module.
    """
    before, kind = dict(vars(module)), type(module).__name__
    try:
        with random_state_kept():
            graph = OwnForward().trace(module, dict(fixed) or None)
    except Exception as err:  # user code under a tracer: anything may come
        raise _untraced(kind, f"{type(err).__name__}: {err}".split("\n")[0][:160]) from err
    finally:
        written = [key for key, value in vars(module).items() if key not in before or before[key] is not value]
        vars(module).clear()
        vars(module).update(before)
    if written:
        raise _untraced(kind, f"it writes to self.{written[0]}")
    return graph


def traced(module: nn.Module) -> fx.Graph:
    """Trace a module's own forward with every argument that has None, a bool or a string as default left at it.

    Raises:
        TreatmentError: It cannot be traced, or not be rewritten.
    """
    kind, signature = type(module).__name__, inspect.signature(type(module).forward)
    if "forward" in vars(module) and not isinstance(vars(module)["forward"], Rewritten):
        raise _untraced(kind, "somebody has put another function in its place")
    if any(each.kind in {each.VAR_POSITIONAL, each.VAR_KEYWORD} for each in signature.parameters.values()):
        raise _untraced(kind, "it takes any number of arguments")
    defaults = {name: each.default for name, each in signature.parameters.items()}
    return trace(module, constants(defaults))


def in_words(node: Any, depth: int) -> str:
    """Write a node of a traced graph as it may stand in the source; what is deeper than some calls becomes dots.

    Example:
        >>> graph = fx.symbolic_trace(nn.Sequential(nn.Linear(1, 1), nn.ReLU())).graph
        >>> [in_words(node, 1) for node in graph.nodes][:3]
        ['input', 'self[0](input)', 'self[1](...)']
    """
    if not isinstance(node, fx.Node):
        return repr(node) if isinstance(node, str | int | float | bool | None) else "..."
    if node.op == "placeholder":
        return node.name.removesuffix("_1")
    held = re.sub(r"\.?\b(\d+)\b", r"[\1]", f"self.{node.target}")
    if node.op == "get_attr" or depth == 0:
        return held if node.op == "get_attr" else "..."
    given = [in_words(one, depth - 1) for one in node.args]
    given += [
        f"{key}={in_words(one, depth - 1)}"
        for key, one in node.kwargs.items()
        if one is not None and one is not False and not key.startswith("_")
    ]
    sign = SIGNS.get(getattr(node.target, "__name__", ""))
    if sign is not None and len(given) == 2:
        return f"({given[0]} {sign} {given[1]})"
    called = held if node.op == "call_module" else getattr(node.target, "__name__", "function")
    if node.op == "call_method":
        called, given = f"{given[0]}.{node.target}", given[1:]
    return f"{called}({', '.join(given)})"


def constants(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Choose the arguments that a forward branches on: those that are None, a bool or a string."""
    return {key: value for key, value in arguments.items() if value is None or isinstance(value, bool | str)}


def rewrite_(module: nn.Module, calls: Mapping[str, str]) -> None:
    """Let children stand for calls of a module's own forward, besides those that do already.

    Args:
        module: Changed in place; has the children.
        calls: The name of a child for each name of a node; an empty name gives the call back to the function.
    """
    old = vars(module).get("forward")
    merged = {**(old.calls if isinstance(old, Rewritten) else {}), **calls}
    kept = {node: child for node, child in merged.items() if child}
    vars(module).pop("forward", None)
    if kept:
        module.forward = Rewritten(module, kept)


def _untraced(kind: str, why: str) -> TreatmentError:
    return TreatmentError(
        f"{kind}.forward", came=f"code that cannot be rewritten: {why}", wanted="a forward that torch.fx can trace"
    )
