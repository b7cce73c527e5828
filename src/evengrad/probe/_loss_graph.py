"""The way from the loss back to the last layer that has weights, read off the autograd graph."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor

MOST_NODES = 512  # of the graph that are looked at: a loss and its regularisers, not a model

# What moves numbers about, or changes their dtype, and leaves them what they are.
SHAPE_OPS = frozenset({
    "Alias", "AsStrided", "Broadcast", "Cat", "Chunk", "Clone", "Contiguous", "Copy", "CopySlices", "Expand",
    "Flatten", "FusedDropout", "Gather", "Identity", "Index", "IndexSelect", "MaskedSelect", "Movedim", "Narrow",
    "NativeDropout", "Permute", "Repeat", "Reshape", "ReshapeAlias", "Scatter", "Select", "Slice", "Split",
    "SplitWithSizes", "Squeeze", "Stack", "T", "ToCopy", "Transpose", "Unbind", "Unflatten", "UnsafeSplit",
    "UnsafeView", "Unsqueeze", "View", "ViewAsComplex", "ViewAsReal", "_DDPSink",
})  # fmt: skip

# What multiplies with weights, whether or not they lie right behind it.
LAYER_OPS = re.compile(
    r"Addmm|Addmv|Addbmm|Baddbmm|Mm|Bmm|Mv|Dot|Matmul|Linear|Trilinear|Embedding|Rnn|Lstm|Gru|Conv|Attention|Compiled"
)
ENDS_IN_BACKWARD = re.compile(r"Backward(s|\d*)$")
# What holds its first argument against its second.
DIFFERENCES = frozenset({"HuberLoss", "L1Loss", "MseLoss", "Rsub", "SmoothL1Loss", "Sub"})
SOFTMAXES = frozenset({"Softmax", "LogSoftmax", "SafeSoftmax"})
LEAF = "torch::autograd::AccumulateGrad"

# Reasons for which the gradient ends although weights lie behind.
NO_LOSS_GRAPH = "the loss has no graph"
NO_OUTPUT_GRAPH = "the output has no graph"
NOT_OF_OUTPUT = "the loss does not depend on the output"


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Op:
    """One operation between the loss and the last layer with weights.

    Args:
        name: As torch names it, without `Backward0`.
        node: Its node in the graph; to be let go of before the backward.
    """

    name: str
    node: Any

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The shape of its result; None where torch does not say."""
        found = self.attribute("_input_metadata")
        return tuple(found[0].shape) if found else None

    @property
    def follows(self) -> tuple[bool, ...]:
        """Whether a gradient flows on to each of its arguments."""
        return tuple(following is not None for following, _ in self.node.next_functions)

    @property
    def input_shape(self) -> tuple[int, ...] | None:
        """The shape of its first argument, where a gradient flows on to it."""
        return self.shape_of_argument(0)

    def shape_of_argument(self, place: int) -> tuple[int, ...] | None:
        """Give the shape of an argument, where a gradient flows on to it."""
        following, number = self.node.next_functions[place]
        found = getattr(following, "_input_metadata", None)
        return tuple(found[number].shape) if found else None

    @property
    def is_softmax(self) -> bool:
        """Whether it is a softmax or its logarithm."""
        return self.name in SOFTMAXES

    def attribute(self, name: str) -> Any:
        """Read what the node has saved; None where it has not, or does not give it away any more."""
        try:
            return getattr(self.node, name, None)
        except (RuntimeError, NotImplementedError):  # freed by a backward, or of a kind that torch cannot hand out
            return None


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Way:
    """The operations from a loss back to the last layer with weights.

    Args:
        ops: The loss's own first; shape operations are left out.
        loss_ops: How many of them were done after the model, on its output; None where the output was not met.
        cuts: Why the graph ends although weights lie behind.
    """

    ops: tuple[Op, ...] = ()
    loss_ops: int | None = None
    cuts: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(op.name for op in self.ops)

    @property
    def compared_shape(self) -> tuple[int, ...] | None:
        """In which shape the output is held against something without a gradient, if that is done first with it."""
        first = self.ops[self.loss_ops - 1] if self.loss_ops else None
        if first is None or first.name not in DIFFERENCES or sum(first.follows) != 1:
            return None
        if first.name in {"Rsub", "Sub"}:
            return first.shape
        return first.shape_of_argument(first.follows.index(True))  # torch has broadcast both before

    @property
    def softmax_size(self) -> int | None:
        """Over how many numbers the softmax nearest to the loss goes; None without one."""
        softmax = next((op for op in self.ops if op.is_softmax), None)
        shape = None if softmax is None else softmax.shape
        if softmax is None or not shape:
            return None
        dim = softmax.attribute("_saved_dim")
        if not isinstance(dim, int):
            return None
        dim = dim - (1 << 64) if dim >= 1 << 63 else dim  # torch hands out -1 without its sign
        return shape[dim] if -len(shape) <= dim < len(shape) else None


def way_back(loss: Tensor, output: Tensor | None = None) -> Way:
    """Walk from a loss to the last layer with weights, without touching a number.

    Where the graph forks, as in a sum of losses, the way is the shortest to the output of the model; where the output
    is not known or not met, the shortest to an operation that multiplies with weights, as a product or a convolution
    does, and where there is none to whatever uses a parameter. It ends before the first operation that does either.

    Args:
        loss: Of any shape.
        output: What the model gave.

    Cost: At most 512 nodes of the graph are looked at, about a microsecond each; nothing on the device. Nodes are held
        by the result, not the tensors that they have saved.

    Example:
        >>> import torch
        >>> layer = torch.nn.Linear(3, 2)
        >>> output = layer(torch.ones(4, 3)).softmax(1)
        >>> loss = torch.nn.functional.cross_entropy(output, torch.zeros(4, dtype=torch.int64))
        >>> way_back(loss, output).names
        ('NllLoss', 'LogSoftmax', 'Softmax')
    """
    start = loss.grad_fn
    if start is None:
        return Way(cuts=(NO_LOSS_GRAPH,))
    if output is None:
        return Way(ops=_ops(_path_to_weights(start)))
    if output.grad_fn is None:
        cuts = () if output.requires_grad else (NO_OUTPUT_GRAPH,)
        return Way(ops=_ops(_path_to_weights(start)), cuts=cuts)
    path, everything = _search(start, lambda node: node is output.grad_fn)
    if path is None:
        cuts = (NOT_OF_OUTPUT,) if everything else ()
        return Way(ops=_ops(_path_to_weights(start)), cuts=cuts)
    inside = _path_to_weights(path[-1])
    outside = _until_weights(path[:-1])
    if len(outside) < len(path) - 1:  # weights of the loss's own
        inside = []
    before = _ops(outside)
    return Way(ops=(*before, *_ops(inside)), loss_ops=len(before))


def _search(start: Any, is_it: Callable[[Any], bool]) -> tuple[list[Any] | None, bool]:
    """Find the shortest path to a node, and tell whether the whole graph was looked at."""
    parents: dict[Any, Any] = {start: None}
    queue = deque([start])
    while queue:
        node = queue.popleft()
        if is_it(node):
            return _path(node, parents), True
        for following, _ in node.next_functions:
            if following is None or following in parents:
                continue
            if len(parents) >= MOST_NODES:
                return None, False
            parents[following] = node
            queue.append(following)
    return None, True


def _path(node: Any, parents: dict[Any, Any]) -> list[Any]:
    path = []
    while node is not None:
        path.append(node)
        node = parents[node]
    return path[::-1]


def _path_to_weights(start: Any) -> list[Any]:
    """Find the way to the nearest product with weights, else to the nearest use of a parameter; without that itself."""
    for is_it in (_multiplies, _owns_weights):
        path, _ = _search(start, is_it)
        if path is not None:
            return _until_weights(path)
    return _first_ways(start)


def _until_weights(path: list[Any]) -> list[Any]:
    for place, node in enumerate(path):
        if _multiplies(node) or _owns_weights(node):
            return path[:place]
    return path


def _first_ways(node: Any) -> list[Any]:
    """Follow first inputs where nothing leads to weights: the operations before the graph ends."""
    path: list[Any] = []
    while node is not None and _name(node) != LEAF and len(path) < MOST_NODES:
        path.append(node)
        node = next((following for following, _ in node.next_functions if following is not None), None)
    return path


def _name(node: Any) -> str:
    return str(node.name())


def _multiplies(node: Any) -> bool:
    return bool(LAYER_OPS.search(_name(node))) and not is_custom(node)


def _owns_weights(node: Any) -> bool:
    return any(following is not None and _name(following) == LEAF for following, _ in node.next_functions)


def is_custom(node: Any) -> bool:
    """Tell whether a node is an autograd function in Python that is not torch's own."""
    kind = getattr(node, "_forward_cls", None)
    return kind is not None and str(getattr(kind, "__module__", "")).split(".")[0] not in {"torch", "evengrad"}


def _ops(path: Sequence[Any]) -> tuple[Op, ...]:
    named = ((ENDS_IN_BACKWARD.sub("", _name(node)).split("::")[-1], node) for node in path)
    return tuple(Op(name=name, node=node) for name, node in named if name not in SHAPE_OPS)
