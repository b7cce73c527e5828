"""Sequential networks as Keras writes them: activations, initialisers and losses by name, and changes in place."""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

LEAST = 1e-7  # Keras holds probabilities between this and one minus this
Weighted = nn.Linear | nn.Conv2d


class Function(nn.Module):
    """A function as a layer."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Noise(nn.Module):
    """Gaussian noise in training mode, as Keras' layer of this name."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * torch.randn_like(x) if self.training else x


def _hard_sigmoid(x: Tensor) -> Tensor:
    return (0.2 * x + 0.5).clamp(0, 1)


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "elu": nn.ELU,
    "softmax": partial(nn.Softmax, dim=1),
    "selu": nn.SELU,
    "softplus": nn.Softplus,
    "softsign": nn.Softsign,
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "hard_sigmoid": partial(Function, _hard_sigmoid),
    "exponential": partial(Function, torch.exp),
    "linear": nn.Identity,
    "LeakyReLU": partial(nn.LeakyReLU, 0.3),
    "ELU": nn.ELU,
    "ThresholdedReLU": partial(nn.Threshold, 1.0, 0.0),
}
"""Activations by their name in Keras, with its defaults."""

BETWEEN = tuple({type(make()) for make in ACTIVATIONS.values()})


def flat(model: nn.Module) -> list[nn.Module]:
    """List the layers of a sequential model."""
    if not isinstance(model, nn.Sequential):
        return [model]
    return [layer for child in model for layer in flat(child)]


def network(model: nn.Module, output: str) -> nn.Sequential:
    """Take the layers up to the last one with weights, and the output's activation behind them."""
    layers = flat(model)
    last = max(index for index, layer in enumerate(layers) if isinstance(layer, Weighted))
    return nn.Sequential(*layers[: last + 1], ACTIVATIONS[output]())


def weighted(model: nn.Sequential) -> list[Weighted]:
    """List the layers with weights; the last one makes the output."""
    return [layer for layer in model if isinstance(layer, Weighted)]


def behind_hidden(model: nn.Sequential, make: Callable[[Weighted, nn.Module], list[nn.Module]]) -> nn.Sequential:
    """Rebuild a network around the same layers: `make(layer, activation)` gives what comes behind a hidden layer.

    An activation that is missing counts as the identity.
    """
    layers, made, index = list(model), [], 0
    last = weighted(model)[-1]
    while index < len(layers):
        layer = layers[index]
        made.append(layer)
        index += 1
        if isinstance(layer, Weighted) and layer is not last:
            activation: nn.Module = nn.Identity()
            if isinstance(layers[index], BETWEEN):
                activation, index = layers[index], index + 1
            made += make(layer, activation)
    return nn.Sequential(*made)


def with_activation(model: nn.Sequential, name: str) -> nn.Sequential:
    """Put one activation behind every hidden layer."""
    return behind_hidden(model, lambda layer, old: [ACTIVATIONS[name]()])


def with_norms(model: nn.Sequential) -> nn.Sequential:
    """Put a batch normalisation with Keras' settings behind the activation of every hidden layer."""

    def make(layer: Weighted, old: nn.Module) -> list[nn.Module]:
        kind = nn.BatchNorm1d if isinstance(layer, nn.Linear) else nn.BatchNorm2d
        return [old, kind(layer.weight.shape[0], eps=1e-3, momentum=0.01)]

    return behind_hidden(model, make)


def with_noise(model: nn.Sequential) -> nn.Sequential:
    """Put noise in front of the first layer with weights."""
    first = next(index for index, layer in enumerate(model) if isinstance(layer, Weighted))
    return nn.Sequential(*model[:first], Noise(), *model[first:])


def with_output(model: nn.Sequential, name: str) -> nn.Sequential:
    """Replace the activation of the output."""
    return nn.Sequential(*model[:-1], ACTIVATIONS[name]())


INITIALIZERS = (
    "zeros", "ones", "constant", "random_normal", "random_uniform", "truncated_normal", "orthogonal",
    "lecun_uniform", "glorot_normal", "glorot_uniform", "he_normal", "lecun_normal", "he_uniform",
)  # fmt: skip
"""Initialisers by their name in Keras."""

_PLAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "zeros": nn.init.zeros_,
    "ones": nn.init.ones_,
    "constant": nn.init.zeros_,
    "random_normal": partial(nn.init.normal_, std=0.05),
    "random_uniform": partial(nn.init.uniform_, a=-0.05, b=0.05),
    "truncated_normal": partial(nn.init.trunc_normal_, std=0.05, a=-0.1, b=0.1),
    "orthogonal": nn.init.orthogonal_,
}
_CUT = 0.87962566103423978  # standard deviation of a normal that is cut at two


def draw_(values: Tensor, name: str) -> None:
    """Draw weights or biases as Keras does; a bias vector counts as many inputs as it has entries.

    Raises:
        ValueError: The initialiser is for matrices only.
    """
    if name in _PLAIN:
        _PLAIN[name](values)
        return
    kind, shape = name.split("_")
    fan_in = len(values) if values.ndim == 1 else values[0].numel()
    fan_out = len(values) if values.ndim == 1 else values.shape[0] * values[0, 0].numel()
    variance = {"he": 2 / fan_in, "lecun": 1 / fan_in, "glorot": 2 / (fan_in + fan_out)}[kind]
    if shape == "uniform":
        nn.init.uniform_(values, -math.sqrt(3 * variance), math.sqrt(3 * variance))
    else:
        std = math.sqrt(variance) / _CUT
        nn.init.trunc_normal_(values, std=std, a=-2 * std, b=2 * std)


def held(chances: Tensor) -> Tensor:
    return chances.clamp(LEAST, 1 - LEAST)


def categorical(output: Tensor, target: Tensor) -> Tensor:
    """Take the cross entropy as Keras does: rows are divided by their sum first."""
    return -(target * held(output / output.sum(1, keepdim=True)).log()).sum(1).mean()


def binary(output: Tensor, target: Tensor) -> Tensor:
    chances = held(output)
    return -(target * chances.log() + (1 - target) * (1 - chances).log()).mean()


def _absolute_percentage(output: Tensor, target: Tensor) -> Tensor:
    return 100 * ((target - output) / target.abs().clamp_min(LEAST)).abs().mean()


def _logarithmic(output: Tensor, target: Tensor) -> Tensor:
    return (output.clamp_min(LEAST).log1p() - target.clamp_min(LEAST).log1p()).square().mean()


def _margin(output: Tensor, target: Tensor) -> Tensor:
    signs = 2 * target - 1 if bool(((target == 0) | (target == 1)).all()) else target
    return (1 - signs * output).clamp_min(0)


def _categorical_hinge(output: Tensor, target: Tensor) -> Tensor:
    right, wrong = (target * output).sum(1), ((1 - target) * output).amax(1)
    return (wrong - right + 1).clamp_min(0).mean()


def _log_cosh(output: Tensor, target: Tensor) -> Tensor:
    error = output - target
    return (error + functional.softplus(-2 * error) - math.log(2)).mean()


def _divergence(output: Tensor, target: Tensor) -> Tensor:
    wanted, given = target.clamp(LEAST, 1), output.clamp(LEAST, 1)
    return (wanted * (wanted / given).log()).sum(1).mean()


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean_squared_error": lambda output, target: (output - target).square().mean(),
    "mean_absolute_error": lambda output, target: (output - target).abs().mean(),
    "mean_absolute_percentage_error": _absolute_percentage,
    "mean_squared_logarithmic_error": _logarithmic,
    "squared_hinge": lambda output, target: _margin(output, target).square().mean(),
    "hinge": lambda output, target: _margin(output, target).mean(),
    "categorical_hinge": _categorical_hinge,
    "logcosh": _log_cosh,
    "categorical_crossentropy": categorical,
    "binary_crossentropy": binary,
    "kullback_leibler_divergence": _divergence,
    "poisson": lambda output, target: (output - target * (output + LEAST).log()).mean(),
}
"""Losses of probabilities or numbers, against numbers or rows with ones, by their name in Keras."""
