"""What kind of module this is: which non-linearity, where its units are, whether it is recurrent."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.parametrize import is_parametrized

# Module classes that are a non-linearity, in torch's functional spelling.
NONLINEARITIES: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.LeakyReLU: "leaky_relu",
    nn.PReLU: "prelu",
    nn.RReLU: "rrelu",
    nn.ELU: "elu",
    nn.CELU: "celu",
    nn.SELU: "selu",
    nn.GELU: "gelu",
    nn.SiLU: "silu",
    nn.Mish: "mish",
    nn.Softplus: "softplus",
    nn.Hardswish: "hardswish",
    nn.Sigmoid: "sigmoid",
    nn.Hardsigmoid: "hardsigmoid",
    nn.Tanh: "tanh",
    nn.Hardtanh: "hardtanh",
    nn.Softsign: "softsign",
}

# Functions of torch, torch.nn.functional and Tensor that are one: `relu_` and `relu` are the same here.
FUNCTIONS = frozenset(NONLINEARITIES.values())

# Those whose output is zero wherever their input is negative: a unit that is zero for every sample learns no more.
RECTIFIERS = frozenset({"relu", "relu6"})

CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
CHANNELS_SECOND = (*CONVOLUTIONS, nn.BatchNorm2d, nn.BatchNorm3d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.GroupNorm)
RECURRENT = (nn.RNN, nn.LSTM, nn.GRU)

# Modules that a sampler reads more of than their output.
SPECIAL = (*RECURRENT, nn.LSTMCell, nn.GRUCell, nn.MultiheadAttention, nn.Softmax, _BatchNorm)

# In evaluation mode and without gradients torch may run these in one fused operation, which rounds differently, but
# never under a hook or a torch-function mode.
FUSED = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder)


def nonlinearity_of(module: nn.Module) -> str | None:
    """Name the non-linearity that a module is; None for everything else, and for a hardtanh with other bounds."""
    if type(module) is nn.Hardtanh and (module.min_val, module.max_val) != (-1, 1):
        return None  # a clamp: from its output alone nobody can tell where it is flat
    return NONLINEARITIES.get(type(module))


def unit_dim_of(module: nn.Module | None, *, ndim: int, channels_first: bool) -> int:
    """Tell which dimension of the output counts units.

    Args:
        module: What made the output; None for a function.
        ndim: Dimensions of the output.
        channels_first: Whether the last layer with weights before it was a convolution.

    Channels come second in what a convolution and the layers after it make of a batch; features come last everywhere
    else.
    """
    if ndim < 3:
        return max(ndim - 1, 0)
    return 1 if channels_first or isinstance(module, CHANNELS_SECOND) else ndim - 1


def batches_tracked_by(module: nn.Module | None) -> Tensor | None:
    """Give the counter of a batch norm with running statistics; None for all else.

    Instance norms have such a counter, and never count.
    """
    if not isinstance(module, _BatchNorm) or not module.track_running_stats:
        return None
    return module.num_batches_tracked


def calls_functions(module: nn.Module) -> bool:
    """Tell whether a module's forward may call non-linearities and attention as functions.

    Of torch's own modules only the layers of a transformer do; what is a non-linearity is read as a module.
    """
    if "forward" in vars(module):
        return True
    home = str(getattr(getattr(type(module), "forward", None), "__module__", ""))
    return home == "torch.nn.modules.transformer" or not home.startswith("torch.nn.")


def plain_name(name: str) -> str:
    """Name a module or parameter as it was before `torch.compile` wrapped it.

    Example:
        >>> plain_name("_orig_mod.blocks.0._orig_mod.weight")
        'blocks.0.weight'
    """
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def own_parameters(module: nn.Module) -> list[nn.Parameter]:
    """List the parameters of the module itself, and what a parametrization such as weight_norm made of them."""
    own = [parameter for parameter in module._parameters.values() if parameter is not None]
    inner = _parametrizations(module)
    return own if inner is None else [*own, *inner.parameters()]


def parametrizations_of(model: nn.Module) -> set[nn.Module]:
    """Find the modules that make weights, not activations: they are part of the layer whose weights they make."""
    found = [_parametrizations(module) for module in model.modules()]
    return {part for inner in found if inner is not None for part in inner.modules()}


def _parametrizations(module: nn.Module) -> nn.Module | None:
    return module._modules.get("parametrizations") if is_parametrized(module) else None
