"""Blocks in forwards of the user's own: what follows a layer there is seen by torch.fx and goes into its block."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from evengrad.nouns import TreatmentError, output_of
from evengrad.treat._activation_calls import Call, calls_as_modules_, calls_code, give_back_
from evengrad.treat._activations import activation_name
from evengrad.treat._forward_order import first_tensor, inside_torch, is_norm, is_sequence, names_of
from evengrad.treat._random_state import random_state_kept
from evengrad.treat._residual_blocks import Block, Layers, Part, is_activation, is_dropout
from evengrad.treat._traced import has_own_forward, in_words, rewrite_, traced


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """Blocks in forwards of the user's own.

    Args:
        blocks: The blocks.
        calls: The calls of functions, and of modules used elsewhere too, in whose place `nn.Identity` stands then.
    """

    blocks: tuple[Block, ...]
    calls: tuple[Call, ...]

    @property
    def code(self) -> str:
        """Code that takes the calls out of the forwards."""
        return calls_code(self.calls, "nn.Identity()")


def in_forwards_(layers: Layers) -> Found:
    """Find blocks in forwards that can be traced, and take the calls that go into them out, in place.

    Without a batch, on which the traced forward is compared with the forward, nothing is found.
    """
    model = layers.model
    if layers.batch_input is None:
        return Found(blocks=(), calls=())
    known, _ = calls_as_modules_(model, layers.batch_input)
    by_node = {(call.owner, call.node): call for call in known}
    blocks: list[Block] = []
    used: list[Call] = []
    for owner in _owners(model):
        pairs = _chains(layers, owner, by_node)
        calls = [call for _, of_block in pairs for call in of_block]
        if not calls or _take_out_(layers, calls, set(known)):
            blocks += [block for block, _ in pairs]
            used += calls
    give_back_(model, [call for call in known if call not in used])
    return Found(blocks=tuple(blocks), calls=tuple(used))


def _take_out_(layers: Layers, calls: list[Call], known: set[Call]) -> bool:
    """Put `nn.Identity` in the place of one forward's calls; tell whether its traced form does the same without."""
    owner = layers.model.get_submodule(calls[0].owner)
    own = [call for call in calls if call not in known]  # of modules; those of functions were compared
    before = _outputs(layers)
    for call in own:
        owner.add_module(call.child, layers.model.get_submodule(call.function))
    rewrite_(owner, {call.node: call.child for call in own})
    if not _same_in_both_modes(owner) or not all(map(_equal, before, _outputs(layers))):
        give_back_(layers.model, own)
        return False
    for call in calls:
        setattr(owner, call.child, nn.Identity().train(owner.training))
    return True


def _same_in_both_modes(owner: nn.Module) -> bool:
    mode, names = owner.training, []
    for training in (True, False):
        owner.training = training
        names.append([node.name for node in traced(owner).nodes])
    owner.training = mode
    return names[0] == names[1]


def _outputs(layers: Layers) -> list[Tensor | None]:
    """Run copies in both modes, from the same random state."""
    outputs: list[Tensor | None] = []
    for training in (False, True):
        with random_state_kept(), torch.no_grad():
            try:
                output = output_of(copy.deepcopy(layers.model).train(training), layers.batch_input)
            except Exception:  # user code: anything may come, as from a batch norm and one sample
                output = None
            outputs.append(first_tensor(output))
    return outputs


def _equal(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.shape == other.shape and torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)


def _owners(model: nn.Module) -> list[str]:
    own = [(name, module) for name, module in model.named_modules() if has_own_forward(module)]
    return [name for name, _ in own if "parametrizations" not in name.split(".")]


def _chains(layers: Layers, owner: str, calls: dict[tuple[str, str], Call]) -> list[tuple[Block, tuple[Call, ...]]]:
    try:
        graph = traced(layers.model.get_submodule(owner))
    except TreatmentError:
        return []
    found = []
    for node in graph.nodes:
        if node.op != "call_module" or len(node.args) != 1 or node.kwargs or not _once(graph, node):
            continue
        name = _path(owner, node)
        if is_sequence(layers.model.get_submodule(name)) or inside_torch(layers.model, name):
            continue
        if not layers.used_once(name):
            continue
        shortcut = layers.shortcut(name, layers.model.get_submodule(name))
        if shortcut is not None:
            found.append(_Chain(layers.model, owner, graph, calls).block(node, name, shortcut))
    return found


class _Chain:
    """What follows one layer in a graph, and goes into its block."""

    def __init__(self, model: nn.Module, owner: str, graph: fx.Graph, calls: dict[tuple[str, str], Call]) -> None:
        self.model, self.owner, self.graph, self.calls = model, owner, graph, calls
        self.parts: list[Part] = []
        self.emptied: list[str] = []
        self.used: list[Call] = []

    def block(self, node: fx.Node, name: str, shortcut: str) -> tuple[Block, tuple[Call, ...]]:
        """Follow the only users of a layer's output."""
        for fits in (is_norm, is_activation, is_dropout):
            user = next(iter(node.users), None) if len(node.users) == 1 else None
            if user is not None and self._takes(user, fits):
                node = user
        made = Block(name=name, parts=tuple(self.parts), emptied=tuple(self.emptied), shortcut=shortcut)
        return made, tuple(self.used)

    def _takes(self, node: fx.Node, fits: Callable[[nn.Module], bool]) -> bool:
        call = self.calls.get((self.owner, node.name))
        if call is not None and fits is is_activation:
            made = self.model.get_submodule(call.name)
            if activation_name(made) is None:
                return False
            self.parts.append(Part(module=made, code=f"nn.{made!r}", new=True))
            self.used.append(call)
            return True
        if node.op != "call_module" or len(node.all_input_nodes) != 1 or len(node.args) != 1:
            return False
        name = _path(self.owner, node)
        if not fits(self.model.get_submodule(name)):
            return False
        module = self.model.get_submodule(name)
        if _once(self.graph, node) and len(names_of(self.model, module)) == 1:
            self.parts.append(Part(module=module, code=name))
            self.emptied.append(name)
            return True
        return self._take_call(node, name, module)

    def _take_call(self, node: fx.Node, name: str, module: nn.Module) -> bool:
        """Take one of several calls of a module, as a copy: what has weights is to stay one."""
        child = f"call_{node.name}"
        owner = self.model.get_submodule(self.owner)
        if hasattr(owner, child) or any(True for _ in module.parameters()) or any(True for _ in module.buffers()):
            return False
        code = f"copy.deepcopy(model.get_submodule({name!r}))"
        self.parts.append(Part(module=copy.deepcopy(module), code=code, new=True))
        kind = type(owner).__name__
        text, given = in_words(node, 2), in_words(node.all_input_nodes[0], 1)
        self.used.append(
            Call(owner=self.owner, kind=kind, node=node.name, child=child, function=name, text=text, given=given)
        )
        return True


def _once(graph: fx.Graph, node: fx.Node) -> bool:
    return len([other for other in graph.nodes if other.op == "call_module" and other.target == node.target]) == 1


def _path(owner: str, node: fx.Node) -> str:
    return f"{owner}.{node.target}" if owner else str(node.target)
