"""Splits, batches, metrics, networks and optimizers that the programs are put together from."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from ._program import MakeOptimizer

CE, MSE, BCE = functional.cross_entropy, functional.mse_loss, functional.binary_cross_entropy
BCE_LOGITS = functional.binary_cross_entropy_with_logits

he_uniform = partial(nn.init.kaiming_uniform_, nonlinearity="relu")
he_normal = partial(nn.init.kaiming_normal_, nonlinearity="relu")
glorot = partial(nn.init.xavier_uniform_, gain=5 / 3)
small_uniform = partial(nn.init.uniform_, a=-0.05, b=0.05)
orthogonal = nn.init.orthogonal_


def normal(std: float) -> Callable[[Tensor], object]:
    return partial(nn.init.normal_, std=std)


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """What is trained on and what is held back."""

    inputs: Tensor
    targets: Tensor
    held_inputs: Tensor
    held_targets: Tensor


def split(inputs: Any, targets: Any, train: int, *, shuffle: bool = True) -> Split:
    """Shuffle, the same way always, and hold back what comes after the first rows."""
    inputs, targets = torch.as_tensor(inputs), torch.as_tensor(targets)
    inputs = inputs.float() if inputs.is_floating_point() else inputs
    targets = targets.float() if targets.is_floating_point() else targets
    if shuffle:
        order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
        inputs, targets = inputs[order], targets[order]
    return Split(
        inputs=inputs[:train], targets=targets[:train], held_inputs=inputs[train:], held_targets=targets[train:]
    )


def passes(data: Split, batch: int, epochs: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Go over the data in another order at each pass, and in the same orders at each call."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for rows in torch.randperm(len(data.inputs), generator=generator).split(batch):
            yield data.inputs[rows], data.targets[rows]


def accuracy(data: Split, model: nn.Module) -> float:
    """Score the largest output as the class; one output, a probability, counts from one half."""
    output = model(data.held_inputs)
    chosen = output.argmax(1) if output.shape[1] > 1 else (output > 0.5).long()
    return (chosen == data.held_targets).float().mean().item()


def accuracy_of_logit(data: Split, model: nn.Module) -> float:
    """Score one output, a logit, by its sign."""
    return ((model(data.held_inputs) > 0) == data.held_targets.bool()).float().mean().item()


def r2(data: Split, model: nn.Module) -> float:
    """Return the share of the variance that is explained."""
    errors = (model(data.held_inputs).double() - data.held_targets.double()).square().mean()
    return 1 - (errors / data.held_targets.double().var(correction=0)).item()


def fed(data: Split, batch: int, epochs: int, metric: Callable[[Split, nn.Module], float] = accuracy) -> dict[str, Any]:
    """Make the members of a task that come from its data."""
    return {
        "train": partial(passes, data, batch, epochs),
        "validate": partial(metric, data),
        "steps": epochs * math.ceil(len(data.inputs) / batch),
    }


def _made(kind: type[Optimizer], settings: dict[str, Any], model: nn.Module) -> Optimizer:
    return kind(model.parameters(), **settings)


def by(kind: type[Optimizer], lr: float, **settings: Any) -> MakeOptimizer:
    """Make a factory of optimizers of all parameters of a model."""
    return partial(_made, kind, {"lr": lr, **settings})


sgd = partial(by, torch.optim.SGD)
adam = partial(by, torch.optim.Adam)
rmsprop = partial(by, torch.optim.RMSprop)
BY_ADAM = adam(1e-3)


class Exp(nn.Module):
    """The exponential function as an activation, as in the published programs."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.exp(x)


class Residual(nn.Module):
    """A normalised branch that is added to what comes in."""

    def __init__(self, width: int, activation: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.norm, self.linear, self.activation = nn.LayerNorm(width), nn.Linear(width, width), activation()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.activation(self.linear(self.norm(x)))


def drawn(
    model: nn.Sequential, weight: Callable[[Tensor], object], bias: Callable[[Tensor], object] = nn.init.zeros_
) -> nn.Sequential:
    """Draw all weights and biases of dense and convolutional layers anew."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            weight(module.weight)
            bias(module.bias)
    return model


def stack(
    features: int, depth: int, width: int, activation: type[nn.Module], outputs: int, *last: nn.Module
) -> nn.Sequential:
    """Stack dense layers: the linear ones are "0", "2", ..., the head is str(2 * depth)."""
    layers: list[nn.Module] = []
    wide = features
    for _ in range(depth):
        layers += [nn.Linear(wide, width), activation()]
        wide = width
    return nn.Sequential(*layers, nn.Linear(wide, outputs), *last)


def net(shape: tuple[int, int, int, int], activation: type[nn.Module], weight: Callable[[Tensor], object]) -> Any:
    """Make a factory of stacks, (features, depth, width, outputs), with weights drawn and biases zero."""
    features, depth, width, outputs = shape
    return lambda: drawn(stack(features, depth, width, activation, outputs), weight)


def residual(features: int, blocks: int, width: int, outputs: int) -> nn.Sequential:
    """Stack normalised residual blocks between two linear layers."""
    body = [Residual(width) for _ in range(blocks)]
    return nn.Sequential(nn.Linear(features, width), *body, nn.LayerNorm(width), nn.Linear(width, outputs))


def layers(first: int, past: int) -> tuple[str, ...]:
    """Name the modules of a stack from the first up to the one before `past`."""
    return tuple(str(number) for number in range(first, past))
