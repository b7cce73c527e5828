"""AUTOTRAINER's repairs, rebuilt: what each does to a network or to its training, and in which order they are tried."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import isclose

import numpy as np
import torch
from torch import nn

from ._networks import draw_, weighted, with_activation, with_noise, with_norms, with_output
from ._training import Config

ORDER: dict[str, tuple[tuple[str, int], ...]] = {
    "vanish": (("selu", 1), ("relu", 1), ("norm", 1)),
    "explode": (("selu", 1), ("relu", 1), ("clip", 2), ("tanh", 1), ("norm", 1)),
    "relu": (("selu", 1), ("norm", 1), ("initial", 3), ("leaky", 3)),
    "unstable": (
        ("adam", 1), ("lr", 3), ("reduce lr", 1), ("batch", 4), ("momentum", 3), ("noise", 1), ("initial", 3),
    ),
    "slow": (("optimizer", 3), ("lr", 3), ("initial", 3)),
    "activation": (("output", 1),),
    "loss": (("loss", 1),),
    "data": (("data", 1),),
}  # fmt: skip
"""Its order 'balance': repairs for each issue, and how often each is tried."""

ANEW = ("activation", "loss", "data")
"""Issues whose repairs start from the first weights; all others go on with the weights as they are."""

GOOD_INITIALIZERS = ("he_uniform", "lecun_uniform", "glorot_normal", "glorot_uniform", "he_normal", "lecun_normal")
LEAKY = ("LeakyReLU", "ELU", "ThresholdedReLU")
OPTIMIZERS = {
    torch.optim.SGD: 0.01, torch.optim.Adam: 0.001, torch.optim.NAdam: 0.001, torch.optim.Adamax: 0.001,
    torch.optim.RMSprop: 0.001,
}  # fmt: skip
"""Optimizers with Keras' learning rates."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Edit:
    """A change of a network.

    Args:
        kind: `activation`, `norm`, `noise` or `output`; `initial` alone changes no weights that are there already.
        name: Of the activation.
        kernel: Initialiser of fresh hidden weights, if it changes.
        bias: Initialiser of fresh hidden biases.
    """

    kind: str
    name: str = ""
    kernel: str = ""
    bias: str = ""

    @property
    def label(self) -> str:
        """What the table calls it."""
        return " ".join(filter(None, (self.kind, self.name, self.kernel)))

    def __call__(self, model: nn.Sequential, *, fresh: bool) -> nn.Sequential:
        """Change a network around its layers; weights are drawn anew only in a fresh one."""
        if fresh and self.kernel:
            for layer in weighted(model)[:-1]:
                with torch.no_grad():
                    draw_(layer.weight, self.kernel)
                    draw_(layer.bias, self.bias)
        if self.kind == "activation":
            return with_activation(model, self.name)
        if self.kind == "output":
            return with_output(model, self.name)
        return {"norm": with_norms, "noise": with_noise}.get(self.kind, lambda same: same)(model)


Repaired = tuple[list[Edit], Config]

_ACTIVATIONS = {
    "selu": Edit(kind="activation", name="selu", kernel="lecun_uniform", bias="lecun_uniform"),
    "relu": Edit(kind="activation", name="relu", kernel="he_uniform", bias="zeros"),
    "tanh": Edit(kind="activation", name="tanh", kernel="he_uniform", bias="zeros"),
    "norm": Edit(kind="norm"),
    "noise": Edit(kind="noise"),
}


def repaired(
    name: str, attempt: int, config: Config, *, issue: str, units: int, random: np.random.Generator
) -> Repaired | None:
    """Give the changes of one attempt; None where the program has it already, which ends this repair.

    Args:
        name: Of the repair.
        attempt: Counted from 0.
        config: Of the training that is to be repaired.
        issue: What was found.
        units: Of the output.
        random: Where its random choices come from.
    """
    if name in _ACTIVATIONS:
        return [_ACTIVATIONS[name]], config
    if name == "initial":
        bias, kernel = random.choice(GOOD_INITIALIZERS), random.choice(GOOD_INITIALIZERS)
        return [Edit(kind="initial", kernel=str(kernel), bias=str(bias))], config
    if name == "leaky":
        return [Edit(kind="activation", name=LEAKY[attempt])], config
    if name == "output":
        linear = units == 1 and "entropy" not in config.loss
        return [Edit(kind="output", name="linear" if linear else "sigmoid" if units == 1 else "softmax")], config
    changed = _trained_otherwise(name, attempt, config, issue=issue, units=units, random=random)
    return None if changed is None else ([], changed)


def _trained_otherwise(
    name: str, attempt: int, config: Config, *, issue: str, units: int, random: np.random.Generator
) -> Config | None:
    batch = 32 * 2**attempt
    others = [kind for kind in OPTIMIZERS if kind is not config.kind]
    if name == "lr":
        return _at_rate(config, attempt, up=issue == "slow")
    if name == "momentum":
        sgd = _with(config, torch.optim.SGD)
        return replace(sgd, settings=(*sgd.settings, ("momentum", round(float(random.uniform(0.01, 0.9)), 2))))
    has_it = {
        "clip": config.clip_value is not None,
        "adam": config.kind is torch.optim.Adam,
        "reduce lr": config.reduce_lr,
        "batch": config.batch == batch,
    }
    if has_it.get(name, False):
        return None
    change: dict[str, Callable[[], Config]] = {
        "clip": lambda: replace(config, clip_value=round(float(random.uniform(9, 10)), 2)),
        "adam": lambda: _with(config, torch.optim.Adam),
        "optimizer": lambda: _with(config, others[int(random.integers(len(others)))]),
        "reduce lr": lambda: replace(config, reduce_lr=True),
        "batch": lambda: replace(config, batch=batch),
        "loss": lambda: replace(config, loss=_other_loss(config.loss, units, random)),
        "data": lambda: replace(config, scaled=True),
    }
    return change[name]()


def _with(config: Config, kind: type[torch.optim.Optimizer]) -> Config:
    return replace(config, kind=kind, settings=(("lr", OPTIMIZERS[kind]),))


def _at_rate(config: Config, attempt: int, *, up: bool) -> Config | None:
    lr = (0.01 if config.kind is torch.optim.SGD else 0.001) * (10.0 if up else 0.1) ** attempt
    if isclose(lr, config.lr):
        return None
    return replace(config, settings=tuple(sorted({**dict(config.settings), "lr": lr}.items())))


def _other_loss(loss: str, units: int, random: np.random.Generator) -> str:
    wanted = "categorical_crossentropy" if units > 2 else "binary_crossentropy"
    if loss != wanted:
        return wanted
    return str(random.choice(("mean_squared_error", "mean_absolute_error")))


def said(edits: Sequence[Edit], before: Config, after: Config) -> str:
    """Say in a few words what was changed."""
    words = [edit.label for edit in edits]
    if (after.kind, after.settings) != (before.kind, before.settings):
        words.append(f"{after.kind.__name__} " + ", ".join(f"{key} {value:.3g}" for key, value in after.settings))
    words += [f"loss {after.loss}"] if after.loss != before.loss else []
    words += [f"batch {after.batch}"] if after.batch != before.batch else []
    words += [f"clip at {after.clip_value}"] if after.clip_value else []
    words += ["reduce lr"] * after.reduce_lr + ["min-max"] * after.scaled
    return ", ".join(words) or "nothing"
