"""Which layers are drawn anew, and which activation follows each."""

from torch import nn
from torch.nn.utils import parametrize

from evengrad.treat._draws import is_feedforward
from evengrad.treat._forward_order import DROPOUTS, Place, in_one_sequence, parent_of, places
from evengrad.treat._recurrent_draws import Recurrent


def sorted_out(model: nn.Module) -> tuple[dict[str, nn.Module], tuple[str, ...]]:
    """Separate the layers whose weights are drawn anew from those that are left alone; tied weights count once."""
    embedded = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding | nn.EmbeddingBag)}
    seen: set[int] = set()
    free: dict[str, nn.Module] = {}
    left_alone: list[str] = []
    for place in places(model):
        if not place.weighted:
            continue
        own = {id(weight) for weight in place.module.parameters(recurse=False) if weight.dim() > 1}
        if not _is_known(place.module) or own & embedded:
            left_alone.append(place.name)
        elif not own <= seen:
            free[place.name] = place.module
        seen |= own
    return free, tuple(left_alone)


def _is_known(module: nn.Module) -> bool:
    if parametrize.is_parametrized(module):
        return False
    own = dict(module.named_parameters(recurse=False))
    if not all(weight.is_floating_point() for weight in own.values()):
        return False
    if is_feedforward(module):
        return "weight" in own  # not so with the old weight_norm, which computes it before each forward
    if isinstance(module, Recurrent):
        return all(key.startswith(("weight_ih", "weight_hh", "weight_hr", "bias_")) for key in own)
    return isinstance(module, nn.MultiheadAttention)


def what_follows(model: nn.Module, order: tuple[Place, ...], name: str) -> tuple[str, nn.Module | None]:
    """Name the activation before the next weighted layer: `linear` for none, `unknown` if it cannot be seen."""
    here = next((index for index, place in enumerate(order) if place.name == name), None)
    if here is None:
        order = places(model)  # the batch did not reach it: attention reads the weights of its output projection
        here = next(index for index, place in enumerate(order) if place.name == name)
    if isinstance(parent_of(model, name), nn.MultiheadAttention):
        return "linear", None
    visible = True
    for place in order[here + 1 :]:
        if place.activation:
            return place.activation, place.module
        if place.weighted:
            return _between(model, order[here], place, visible), None
        visible = visible and (place.norm or isinstance(place.module, DROPOUTS) or is_of_torch(place.module))
    return ("linear" if visible else "unknown"), None


def _between(model: nn.Module, before: Place, after: Place, visible: bool) -> str:
    if after.input_is == "rectified":
        return "relu"
    if after.input_is == "direct":
        return "linear"
    return "linear" if visible and in_one_sequence(model, before.name, after.name) else "unknown"


def is_of_torch(module: nn.Module) -> bool:
    """Tell whether a module's class is torch's own."""
    return type(module).__module__.startswith("torch.nn.")
