"""What defaults of treatments were chosen by: a norm for few samples, gains of sigmoids, gates that remember.

    python benchmarks/treatments.py -o treatments.json

Norms: dense nets of 64 units on scikit-learn's digits, weights as torch draws them, a norm behind each inner layer as
`AddNormalization(kind=...)` puts it; accuracy on data held back after 200 steps, means over relu and tanh, Adam (lr
1e-3) and SGD (0.05, momentum 0.9). Residual blocks: 20 dense relu layers of 64 units, `AddResidual` with its settings,
the same steps. Sigmoids: the norm of the first layer's gradient over that of the last one's, in a net of twelve sigmoid
layers after `Reinitialize(gain=...)`. Gates: decades that the gradient with respect to the input loses over 60 and 200
steps in a recurrent layer of 64 units after `Reinitialize(forget_bias=...)`, median of five seeds.
One thread; about a minute and a half.
"""

import argparse
import json
import math
import platform
from collections.abc import Callable
from pathlib import Path
from statistics import mean, median

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from evengrad.treat import AddNormalization, AddResidual, Reinitialize

STEPS = 200
OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "adam": lambda model: torch.optim.Adam(model.parameters(), lr=1e-3),
    "sgd": lambda model: torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
}
BLOCKS = {
    "without": None,
    "plain sum": AddResidual(),
    "norm='layer'": AddResidual(norm="layer"),
    "norm='batch'": AddResidual(norm="batch"),
    "zero_init": AddResidual(zero_init=True),
}


def digits() -> tuple[Tensor, Tensor]:
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    return torch.as_tensor(data.data).float()[order] / 16, torch.as_tensor(data.target)[order]


def dense(depth: int, activation: type[nn.Module], width: int = 64) -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(depth - 1):
        layers += [nn.Linear(width, width), activation()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def accuracy(model: nn.Module, optimizer: torch.optim.Optimizer, samples: int) -> float:
    """Train and return the share of right answers on what was held back."""
    inputs, targets = digits()
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        rows = torch.randint(1400, (samples,), generator=generator)
        optimizer.zero_grad()
        functional.cross_entropy(model(inputs[rows]), targets[rows]).backward()
        optimizer.step()
    with torch.no_grad():
        right = model.eval()(inputs[1400:]).argmax(1) == targets[1400:]
    return right.float().mean().item()


def norms() -> list[dict[str, float | int | str]]:
    rows = []
    for samples in (4, 8, 16, 32):
        for depth in (10, 20):
            for kind in ("layer", "batch"):
                reached = []
                for activation in (nn.ReLU, nn.Tanh):
                    for make in OPTIMIZERS.values():
                        treatment = AddNormalization(kind=kind)  # type: ignore[arg-type]
                        model = treatment.treat(dense(depth, activation), batch_input=torch.zeros(4, 64)).subject
                        reached.append(accuracy(model, make(model), samples))
                rows.append({"samples": samples, "layers": depth, "kind": kind, "accuracy": mean(reached)})
    return rows


def blocks() -> list[dict[str, float | str]]:
    rows = []
    for name, treatment in BLOCKS.items():
        for optimizer, make in OPTIMIZERS.items():
            model = dense(20, nn.ReLU)
            if treatment is not None:
                model = treatment.treat(model, batch_input=torch.randn(4, 64)).subject
            rows.append({"blocks": name, "optimizer": optimizer, "accuracy": accuracy(model, make(model), 32)})
    return rows


def sigmoids() -> list[dict[str, float | int]]:
    rows = []
    for width in (5, 64):
        for gain in (1.0, 4.0):
            model = dense(13, nn.Sigmoid, width)
            model = Reinitialize(gain=gain).treat(model, seed=0).subject
            torch.manual_seed(1)
            functional.cross_entropy(model(torch.randn(64, width)), torch.randint(10, (64,))).backward()
            norms_ = [layer.weight.grad.norm().item() for layer in model.modules() if isinstance(layer, nn.Linear)]
            rows.append({"width": width, "gain": gain, "first_over_last": norms_[0] / norms_[-1]})
    return rows


def gates() -> list[dict[str, float | int | str]]:
    rows = []
    for make in (nn.GRU, nn.LSTM):
        for steps in (60, 200):
            for bias in (0.0, 1.0, "chrono"):
                lost = [_lost(make, steps, bias, seed) for seed in range(5)]
                rows.append({"cell": make.__name__, "steps": steps, "forget_bias": str(bias), "decades": median(lost)})
    return rows


def _lost(make: type[nn.RNNBase], steps: int, bias: float | str, seed: int) -> float:
    data = torch.randn(8, steps, 64, generator=torch.Generator().manual_seed(seed))
    torch.manual_seed(seed)
    model = nn.ModuleDict({"rnn": make(64, 64, batch_first=True)})
    treated = Reinitialize(forget_bias=bias).treat(_Reader(model["rnn"]), seed=seed, batch_input=data).subject
    leaf = data.double().requires_grad_()
    treated.double()(leaf).square().sum().backward()
    size = leaf.grad.norm(dim=(0, 2))
    return math.log10(size[-1].item() / size[0].item())


class _Reader(nn.Module):
    """The output of a recurrent layer at the last step."""

    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(self, x: Tensor) -> Tensor:
        last: Tensor = self.rnn(x)[0][:, -1]
        return last


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", type=Path, help="write what was measured to this file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = {"gates": gates(), "sigmoids": sigmoids(), "blocks": blocks(), "norms": norms()}
    for name, rows in found.items():
        print(name)
        for row in rows:
            shown = (f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values())
            print("  " + ", ".join(f"{key} {value}" for key, value in zip(row, shown, strict=True)))
    if given.o is not None:
        machine = {"torch": torch.__version__, "processor": platform.processor() or platform.machine()}
        given.o.write_text(json.dumps({"machine": machine, **found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
