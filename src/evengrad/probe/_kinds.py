"""What kind of module this is: which non-linearity, where its units are, whether it is recurrent."""

from __future__ import annotations

from torch import nn

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

CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
RECURRENT = (nn.RNN, nn.LSTM, nn.GRU)


def nonlinearity_of(module: nn.Module) -> str | None:
    """Name the non-linearity that a module is; None for everything else, and for a pass-through bound."""
    for kind, name in NONLINEARITIES.items():
        if type(module) is kind:
            return name
    return None


def unit_dim_of(module: nn.Module, *, ndim: int, channels_first: bool) -> int:
    """Tell which dimension of the output counts units.

    Channels come second after a convolution and in pooling and batch normalisation of images; features come last
    everywhere else.
    """
    if ndim < 2:
        return 0
    if isinstance(module, CONVOLUTIONS):
        return 1 if ndim > 2 else 0
    if ndim >= 4:
        return 1
    return 1 if channels_first and ndim == 3 else ndim - 1
