"""Residual branches that start at zero: the layer or norm that ends each is found, and its weights are zeroed."""

import copy
from collections.abc import Iterator, Mapping
from typing import final

import torch
from torch import fx, nn
from torch.nn.utils import parametrize

from evengrad.nouns import TreatmentError, shortened
from evengrad.treat._abstract import Change
from evengrad.treat._draws import is_feedforward
from evengrad.treat._forward_graph import ADDITIONS, Forward, forwards
from evengrad.treat._forward_order import is_norm, is_sequence

# What may stand between the last layer of a branch and the addition: it hands a zero on, and the gradient with it.
PASSING = frozenset(
    {
        "view", "reshape", "transpose", "permute", "contiguous", "flatten", "unflatten", "squeeze", "unsqueeze", "to",
        "float", "half", "bfloat16", "type_as", "mul", "mul_", "getitem", "dropout", "dropout1d", "dropout2d",
        "dropout3d", "tanh", "gelu", "silu", "elu", "leaky_relu", "truediv", "div", "imul",
    }
)  # fmt: skip


def zero_branches_(model: nn.Module, label: str) -> Change:
    """Set the last weighted layer of each residual branch to zero, or its last norm's scale, in place.

    Raises:
        TreatmentError: There is no residual branch, or none of those found can start at zero.
    """
    found, why = _ends(model)
    if not found:
        raise TreatmentError(
            label,
            came="; ".join(dict.fromkeys(why)) or "no residual branch that can be found",
            wanted="one that can start at zero",
            advice="leave zero_residual out",
        )
    for name in found:
        _zero_(model.get_submodule(name))
    words = [f"{shortened(found)}: zero, so that each residual branch starts as nothing"]
    words += dict.fromkeys(f"{reason}: left as it is" for reason in why)
    code = (
        f"for name in {list(found)!r}:\n"
        "    layer = model.get_submodule(name)\n"
        "    nn.init.zeros_(layer.weight)\n"
        "    if getattr(layer, 'bias', None) is not None:\n"
        "        nn.init.zeros_(layer.bias)"
    )
    return Change(changes=tuple(words), code=code)


def _zero_(layer: nn.Module) -> None:
    nn.init.zeros_(layer.get_parameter("weight"))
    if getattr(layer, "bias", None) is not None:
        nn.init.zeros_(layer.get_parameter("bias"))


class _BranchError(Exception):
    """Why a branch cannot start at zero."""


def _ends(model: nn.Module) -> tuple[tuple[str, ...], list[str]]:
    """Return the names of the layers that end branches, and why others were not taken."""
    names, why = dict.fromkeys(_of_transformers(model)), []
    walk = _Walk(model)
    for forward in walk.forwards.values():
        for node in _branch_ends(model, forward):
            try:
                names[walk.closing(forward, node)] = None
            except _BranchError as err:
                why.append(str(err))
    shared = _shared(model)
    for name in [name for name in names if id(model.get_submodule(name).get_parameter("weight")) in shared]:
        del names[name]
        why.append(f"{name} (shares its weight)")
    return tuple(names), why


def _of_transformers(model: nn.Module) -> Iterator[str]:
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        if isinstance(module, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer):
            yield f"{prefix}self_attn.out_proj"
            if isinstance(module, nn.TransformerDecoderLayer):
                yield f"{prefix}multihead_attn.out_proj"
            yield f"{prefix}linear2"


def _shared(model: nn.Module) -> set[int]:
    """Identify the parameters that several modules own: zeroing one would zero what is outside of the branch."""
    owned = [id(weight) for module in model.modules() for weight in module.parameters(recurse=False)]
    return {key for key in owned if owned.count(key) > 1} if len(owned) > len(set(owned)) else set()


def _branch_ends(model: nn.Module, forward: Forward) -> Iterator[fx.Node]:
    """Yield, for each addition of a branch to what it was made from, the node that ends the branch."""
    for node in forward.graph.nodes:
        operands = [each for each in node.all_input_nodes if isinstance(each, fx.Node)]
        if node.op not in {"call_function", "call_method"} or node.target not in ADDITIONS or len(operands) != 2:
            continue
        for skip, end in (operands, operands[::-1]):
            if _is_branch(model, forward, skip, end, node):
                yield end
                break


def _is_branch(model: nn.Module, forward: Forward, skip: fx.Node, end: fx.Node, node: fx.Node) -> bool:
    above_skip, above_end = _above(skip), _above(end)
    own = [each for each in above_end - above_skip if each.op == "call_module"]
    if not own or end in above_skip:
        return False
    if skip in above_end:
        return True
    if skip.op == "placeholder":  # as in BERT: norm(layer(x) + what the block was given)
        users = [each for each in node.users if each.op == "call_module"]
        return any(is_norm(model.get_submodule(forward.path(user))) for user in users)
    # a projection on the shortcut: one small layer beside a branch of several, from a common source
    beside = [each for each in above_skip - above_end if each.op == "call_module"]
    counts = [sum(_layers(model.get_submodule(forward.path(each))) for each in side) for side in (beside, own)]
    return bool(above_skip & above_end) and counts[0] == 1 and counts[1] >= 2


def _above(node: fx.Node) -> set[fx.Node]:
    """Collect a node and all that it is made from."""
    found, waiting = set(), [node]
    while waiting:
        each = waiting.pop()
        if each not in found:
            found.add(each)
            waiting += each.all_input_nodes
    return found


def _layers(module: nn.Module) -> int:
    return sum(is_feedforward(part) for part in module.modules())


@final
class _Walk:
    """Walks back from the end of a branch to the last module with weights."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.forwards: Mapping[str, Forward] = {forward.name: forward for forward in forwards(model)}

    def closing(self, forward: Forward, node: fx.Node) -> str:
        """Name the layer or norm whose zero makes the branch zero.

        Raises:
            _BranchError: There is none, or no gradient would come through.
        """
        while True:
            if node.op == "call_module":
                name = self._of_module(forward.path(node))
                if name is not None:
                    return name
            elif node.op in {"placeholder", "get_attr"} or _name(node) not in PASSING:
                raise _BranchError(f"a branch of {forward.name or 'the model'} that ends in {_name(node)}")
            sources = [each for each in node.all_input_nodes if each.op != "get_attr"]
            if node.op != "call_module" and len(sources) != 1:
                raise _BranchError(f"a branch of {forward.name or 'the model'} that ends in a product")
            node = sources[0]

    def _of_module(self, name: str) -> str | None:
        """Name the end within a module; None if the module only hands on."""
        module = self._model.get_submodule(name)
        if parametrize.is_parametrized(module):
            raise _BranchError(f"{name} (parametrised)")
        if isinstance(module, nn.MultiheadAttention):
            return f"{name}.out_proj"
        if is_feedforward(module) or is_norm(module):
            if module._parameters.get("weight") is None:
                raise _BranchError(f"{name} (no weight that could be zero)")
            return name
        if is_sequence(module):
            parts = [f"{name}.{key}" for key in module._modules]
            return next((end for part in reversed(parts) if (end := self._of_module(part)) is not None), None)
        return self._of_own(name, module)

    def _of_own(self, name: str, module: nn.Module) -> str | None:
        forward = self.forwards.get(name)
        if forward is not None:
            output = next(node for node in forward.graph.nodes if node.op == "output")
            result = output.args[0]
            result = result[0] if isinstance(result, tuple | list) else result
            if isinstance(result, fx.Node):
                return self.closing(forward, result)
        if any(True for _ in module.parameters()) or not _hands_on_zero(module):
            raise _BranchError(f"a branch that ends in {name} ({type(module).__name__})")
        return None


def _name(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target))


def _hands_on_zero(module: nn.Module) -> bool:
    """Tell whether a module without weights gives zero for zero, and lets the gradient through there."""
    zero = torch.zeros(2, 4, 4, requires_grad=True)
    try:
        with torch.enable_grad():
            output = copy.deepcopy(module).eval()(zero)
            output.sum().backward()
    except Exception:  # user code, or a module that wants another shape: nothing is known of it
        return isinstance(module, nn.Flatten | nn.Unflatten | nn.Identity)
    return not bool(output.any()) and zero.grad is not None and bool(zero.grad.all())
