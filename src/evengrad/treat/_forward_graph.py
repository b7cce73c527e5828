"""What a forward of the user's own does with its modules: residual branches and attention, seen by torch.fx."""

import copy
import inspect
import operator
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch
from torch import fx, nn
from torch.nn.utils import parametrize

from evengrad.treat._forward_order import is_norm
from evengrad.treat._random_state import random_state_kept

ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")
MOST_LAYERS_OF_A_BRANCH = 8
ATTENTION = (
    torch.softmax,
    nn.functional.softmax,
    nn.functional.scaled_dot_product_attention,
    torch.matmul,
    torch.bmm,
    torch.baddbmm,
    torch.einsum,
    operator.matmul,
    "softmax",
    "matmul",
    "bmm",
    "__matmul__",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Branch:
    """The branch of one addition `x + branch(x)` in a forward of the user's own.

    Args:
        entries: The names of the modules that take `x` as their first argument; none when something else takes it,
            or one of them is called again elsewhere.
        single: Whether each of them takes nothing else.
        modules: The names of all modules that the branch calls.
        norm_behind: The name of the norm that takes the sum and is all that does, as in a post-norm block.
    """

    entries: tuple[str, ...]
    single: bool
    modules: tuple[str, ...]
    norm_behind: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Forward:
    """The graph of one module's forward, in which each module that it calls is one node."""

    name: str
    graph: fx.Graph

    def path(self, node: fx.Node) -> str:
        """Return the name, from the root, of the module that a node calls."""
        return f"{self.name}.{node.target}" if self.name else str(node.target)


@final
class _Flat(fx.Tracer):
    """Trace one forward; what it calls and the buffers that it reads, as a mask cut to a length, are one node each."""

    proxy_buffer_attributes = True

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Take every module as it is."""
        return True


def forwards(model: nn.Module) -> tuple[Forward, ...]:
    """Trace the forward of each module that is not torch's, one level deep; those that cannot be traced are left out.

    An argument that is None by default counts as None.
    """
    with random_state_kept(), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scratch = copy.deepcopy(model)  # a forward may write to its module
        traced = ((name, _traced(module)) for name, module in scratch.named_modules() if _is_own(name, module))
        return tuple(Forward(name=name, graph=graph) for name, graph in traced if graph is not None)


def residual_branches(model: nn.Module, traced: tuple[Forward, ...]) -> tuple[Branch, ...]:
    """List the branches of all additions of a value to what was made of it, the deepest modules first."""
    found = [branch for forward in traced for node in forward.graph.nodes for branch in _branch(model, forward, node)]
    return tuple(sorted(found, key=lambda branch: -max((name.count(".") for name in branch.entries), default=0)))


def joined_modules(model: nn.Module, traced: tuple[Forward, ...]) -> frozenset[str]:
    """Name the modules between a value and an addition of two things made of it: there is a shortcut already.

    Where that is more than the eight dense layers of a gated cell, as in a wide model beside a deep one, it is none.
    """
    found: set[str] = set()
    for forward in traced:
        for node in forward.graph.nodes:
            if node.op in {"call_function", "call_method"} and node.target in ADDITIONS:
                names = {forward.path(each) for each in _joined(node) if each.op == "call_module"}
                inside = {part for name in names for part in model.get_submodule(name).modules()}
                weighted = [part for part in inside if any(value.dim() > 1 for value in part.parameters(recurse=False))]
                found.update(names if len(weighted) <= MOST_LAYERS_OF_A_BRANCH else ())
    return frozenset(found)


def attention_projections(traced: tuple[Forward, ...]) -> frozenset[str]:
    """Name the modules whose outputs meet in an attention: queries, keys and values want the scale that they have."""
    found: set[str] = set()
    for forward in traced:
        for node in forward.graph.nodes:
            if node.op in {"call_function", "call_method"} and node.target in ATTENTION:
                found.update(forward.path(near) for near in _nearest_modules(node))
    return frozenset(found)


def is_attention(parent: nn.Module) -> bool:
    """Tell by its class name whether a module is an attention, for those that cannot be traced."""
    kind = type(parent).__name__.lower()
    return "attention" in kind or "attn" in kind


def _is_own(name: str, module: nn.Module) -> bool:
    if "parametrizations" in name.split(".") or parametrize.is_parametrized(module):
        return False
    return not type(module).__module__.startswith("torch.") and any(True for _ in module.children())


def _traced(module: nn.Module) -> fx.Graph | None:
    try:
        parameters = inspect.signature(module.forward).parameters.values()
        absent = {parameter.name: None for parameter in parameters if parameter.default is None}
        return _Flat().trace(module, concrete_args=absent or None)
    except Exception:  # user code under a tracer: whatever it raises, its graph is not known
        return None


def _branch(model: nn.Module, forward: Forward, node: fx.Node) -> Iterator[Branch]:
    if node.op not in {"call_function", "call_method"} or node.target not in ADDITIONS:
        return
    operands = [operand for operand in node.args if isinstance(operand, fx.Node)]
    if len(operands) != 2 or node.kwargs:
        return
    for skip, end in (operands, operands[::-1]):
        inside = _between(skip, end)
        if not inside or skip is end:
            continue
        entries = [each for each in inside if skip in each.all_input_nodes and not _reads_shape(each)]
        calls = [each for each in inside if each.op == "call_module"]
        fit = all(_takes_first(each, skip) and _called_once(forward.graph, each) for each in entries)
        yield Branch(
            entries=tuple(forward.path(each) for each in entries) if fit else (),
            single=all(len(each.args) == 1 and not each.kwargs for each in entries),
            modules=tuple(forward.path(each) for each in calls),
            norm_behind=_only_user_norm(model, forward, node),
        )
        return


def _between(skip: fx.Node, end: fx.Node) -> list[fx.Node]:
    """List the nodes on all paths from one node to another, without the first; empty when there is none."""
    reached = {skip}
    for node in skip.graph.nodes:
        if any(source in reached for source in node.all_input_nodes):
            reached.add(node)
    if end not in reached:
        return []
    needed, waiting = set(), [end]
    while waiting:
        node = waiting.pop()
        if node in reached and node is not skip and node not in needed:
            needed.add(node)
            waiting += node.all_input_nodes
    return [node for node in skip.graph.nodes if node in needed]


def _joined(node: fx.Node) -> set[fx.Node]:
    """Find the nodes between the last common source of two summands and their addition."""
    operands = [operand for operand in node.args if isinstance(operand, fx.Node)]
    if len(operands) != 2 or operands[0] is operands[1]:
        return set()
    one, other = (_sources(operand) for operand in operands)
    common = [each for each in node.graph.nodes if each in one and each in other]
    return {each for operand in operands for each in _between(common[-1], operand)} if common else set()


def _sources(node: fx.Node) -> set[fx.Node]:
    found, waiting = {node}, [node]
    while waiting:
        new = [source for source in waiting.pop().all_input_nodes if source not in found]
        found.update(new)
        waiting += new
    return found


def _reads_shape(node: fx.Node) -> bool:
    if node.op == "call_function" and node.target is getattr:
        return node.args[1] in {"shape", "dtype", "device", "ndim"}
    return node.op == "call_method" and node.target in {"size", "dim", "ndimension"}


def _takes_first(node: fx.Node, skip: fx.Node) -> bool:
    given = (*node.args, *node.kwargs.values())
    return node.op == "call_module" and any(value is skip for value in given[:1])


def _called_once(graph: fx.Graph, node: fx.Node) -> bool:
    return len([other for other in graph.nodes if other.op == "call_module" and other.target == node.target]) == 1


def _only_user_norm(model: nn.Module, forward: Forward, node: fx.Node) -> str | None:
    users = list(node.users)
    if len(users) != 1 or users[0].op != "call_module" or not _called_once(forward.graph, users[0]):
        return None
    path = forward.path(users[0])
    return path if is_norm(model.get_submodule(path)) else None


def _nearest_modules(node: fx.Node) -> list[fx.Node]:
    """Walk back from a node to the modules whose outputs reach it without another module on the way."""
    found, seen, waiting = [], {node}, list(node.all_input_nodes)
    while waiting:
        near = waiting.pop()
        if near in seen:
            continue
        seen.add(near)
        if near.op == "call_module":
            found.append(near)
        else:
            waiting += near.all_input_nodes
    return found
