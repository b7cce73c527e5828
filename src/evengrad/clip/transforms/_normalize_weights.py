"""Put torch's spectral or weight norm on the layers of a model."""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.nn.utils.parametrize import is_parametrized

from evengrad.clip._settings import one_of
from evengrad.nouns import ModelError, SettingError

_KINDS: dict[str, Callable[..., nn.Module]] = {"spectral": spectral_norm, "weight": weight_norm}


def normalize_weights_(
    model: nn.Module, kind: str, *, modules: Iterable[str] | None = None, **settings: Any
) -> tuple[str, ...]:
    """Bound a layer by how its weight is made: put torch's spectral or weight norm on it, in place.

    Spectral norm divides the weight by its largest singular value, so that the layer stretches nothing; weight norm
    learns length and direction apart. The layers compute the same as before with weight norm, and something else with
    spectral norm. The parameters become others (`parametrizations.weight.original...`): do it before the optimizer is
    made and before a checkpoint is loaded. `torch.nn.utils.parametrize.remove_parametrizations` takes it away.

    Args:
        model: Changed in place, all or nothing.
        kind: "spectral" or "weight".
        modules: Names of the modules, "" for the model itself; None for all linear layers and convolutions, transposed
            ones too, whose weight is their own and plain.
        settings: For `torch.nn.utils.parametrizations.spectral_norm` or `weight_norm`: `n_power_iterations`, `dim`.

    Returns:
        The names of the modules that were changed, in the model's order.

    Raises:
        SettingError: Another kind; a module that is not there, has no weight of two or more dimensions, has a
            parametrized one already, or shares it with another module.
        ModelError: The model has no layer to change.

    Cost: Spectral norm: two products with the weight at each forward pass while training. Weight norm: a norm of it.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> normalize_weights_(model, "weight")
        ('0', '2')

    Source: Miyato et al., 2018, Spectral Normalization for Generative Adversarial Networks, arXiv:1802.05957; Salimans
    and Kingma, 2016, Weight Normalization, arXiv:1602.07868.
    """
    one_of("kind", kind, tuple(_KINDS))
    found = dict(model.named_modules())
    owners = Counter(id(one) for module in found.values() for one in module._parameters.values())
    if modules is None:
        names = [name for name, module in found.items() if _is_layer(module) and not _problem(module, owners)]
        if not names:
            raise ModelError("model", came="no linear layer or convolution with a plain weight", wanted="one at least")
    else:
        wanted = [modules] if isinstance(modules, str) else list(modules)
        for name in wanted:
            problem = _problem(found[name], owners) if name in found else "a model without it"
            if problem:
                raise SettingError(f"module {name!r}", came=problem, wanted="a module with a plain weight of its own")
        names = [name for name in found if name in wanted]
    for name in names:
        _KINDS[kind](found[name], **settings)
    return tuple(names)


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | _ConvNd)


def _problem(module: nn.Module, owners: Counter[int]) -> str:
    """Say why a module's weight cannot be normalised; empty when it can."""
    if is_parametrized(module, "weight"):
        return "a weight that is parametrized already"
    weight = module._parameters.get("weight")
    if weight is None:
        return f"{type(module).__name__} without a weight"
    if isinstance(weight, nn.parameter.UninitializedParameter):
        return "a lazy module that has not seen a batch"
    if weight.dim() < 2:
        return f"a weight of {weight.dim()} dimensions"
    return "a weight that another module shares" if owners[id(weight)] > 1 else ""
