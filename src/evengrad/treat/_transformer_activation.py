"""The activation in the feed-forward part of torch's transformer layers, which is an attribute."""

from torch import nn

from evengrad.nouns import shortened
from evengrad.treat._abstract import Change
from evengrad.treat._activation_calls import function_name
from evengrad.treat._activations import activation_name, new_activation

# What the fused path of `nn.TransformerEncoderLayer` knows; 0 keeps it from being taken.
_FUSED = {"relu": 1, "gelu": 2}


def transformers_with_another(model: nn.Module, to: str) -> tuple[str, ...]:
    """Name torch's transformer layers that have a known activation other than the wanted one."""
    layers = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
    return tuple(
        name
        for name, layer in model.named_modules()
        if isinstance(layer, layers) and _name_of(layer.activation) not in {None, to}
    )


def transformers_(model: nn.Module, names: tuple[str, ...], to: str) -> Change:
    """Give torch's transformer layers another activation, in place."""
    if not names:
        return Change(changes=(), code="")
    fused, new = _FUSED.get(to, 0), new_activation(to)
    for name in names:
        layer = model.get_submodule(name)
        layer.activation = new.made(model).train(layer.training)
        if hasattr(layer, "activation_relu_or_gelu"):
            layer.activation_relu_or_gelu = fused  # type: ignore[assignment]
    code = (
        f"for name in {list(names)!r}:\n"
        "    layer = model.get_submodule(name)\n"
        f"    layer.activation = {new.code}\n"
        "    if hasattr(layer, 'activation_relu_or_gelu'):\n"
        f"        layer.activation_relu_or_gelu = {fused}  # for torch's fused path"
    )
    if not fused and any(_unnested_(encoder) for encoder in model.modules()):
        code += (
            "\nfor encoder in model.modules():\n"
            "    if isinstance(encoder, nn.TransformerEncoder):\n"
            "        encoder.use_nested_tensor = False  # only the fused path takes nested tensors"
        )
    return Change(changes=(f"{shortened(names)}: feed-forward activation replaced by {to}",), code=code)


def _unnested_(encoder: nn.Module) -> bool:
    if not isinstance(encoder, nn.TransformerEncoder):
        return False
    encoder.use_nested_tensor = False
    return True


def _name_of(activation: object) -> str | None:
    return activation_name(activation) if isinstance(activation, nn.Module) else function_name(activation)
