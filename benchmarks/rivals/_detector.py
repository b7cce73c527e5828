"""AUTOTRAINER's detector, rebuilt: the symptoms of a training by its published thresholds.

Zhang et al., AUTOTRAINER: An Automatic DNN Training Problem Detection and Repair System, ICSE 2021, with what the later
version adds. What was seen once stays: features are never reset within a training, as in the original.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf, isfinite
from typing import final

import torch
from torch import Tensor

EVERY = 3  # passes from one look to the next
RATIO_LOW, NORM_LOW, RATIO_HIGH = 1e-3, 1e-4, 70.0  # beta 1 to 3: of the first and the last kernel's gradient
DEAD_FRAC = 0.7  # gamma
SWING, SWINGS_FRAC = 0.03, 0.2  # zeta, eta
LEAST_GAIN = 0.01  # delta
GOOD = 0.7  # theta
LARGE_LAYER, LARGE_OUTPUT = 10.0, 1.1  # omega 1, and omega 2 with its tolerance
LARGE_LOSS = 1e3
JUDGED_FROM = 0.3  # of the passes
PRIORITY = {
    "data": 4, "activation": 3, "loss": 3, "vanish": 2, "explode": 2, "relu": 2, "slow": 1, "unstable": 1,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """What a look shows of the first training batch, in evaluation mode.

    Args:
        gradients: Of every parameter, in the order of the layers.
        finite: Whether all weights are.
        outputs: Of every layer, the network's output last.
    """

    gradients: Sequence[Tensor]
    finite: bool
    outputs: Sequence[Tensor]


@final
class Detector:
    """Follow one training.

    Args:
        epochs: Passes that it is to have.
        loss: By its name in Keras.
        output: Activation of the output, by its name in Keras.
        units: Of the output.
    """

    def __init__(self, *, epochs: int, loss: str, output: str, units: int) -> None:
        self.epochs = epochs
        self.losses: list[float] = []
        self.held_losses: list[float] = []
        self.scores: list[float] = []
        self.held_scores: list[float] = []
        self.features: set[str] = set(static(loss, output, units))
        self._at_half = False

    def keep(self, losses: tuple[float, float], scores: tuple[float, float]) -> None:
        """Keep loss and accuracy of a pass, of the trained and of the held back rows."""
        self.losses.append(losses[0])
        self.held_losses.append(losses[1])
        self.scores.append(scores[0])
        self.held_scores.append(scores[1])

    def look(self, epoch: int, seen: Seen) -> str:
        """Look after a pass, counted from 0; return the gravest issue or nothing."""
        half = epoch >= 0.5 * self.epochs and not self._at_half
        self._at_half = self._at_half or half
        judging = half or bool(self.features & {"negative loss", "broken loss", "no gain"})
        if judging:
            self.features |= of_outputs(seen.outputs, known="wrong output" in self.features)
        self.features |= of_gradients(seen.gradients)
        if not seen.finite:
            self.features.add("broken weights")
        self._judge_course()
        issues = issues_of(self.features) if judging else []
        return max(issues, key=lambda issue: PRIORITY[issue], default="")

    def _judge_course(self) -> None:
        losses = [*self.losses, *self.held_losses]
        if not all(isfinite(loss) for loss in losses) or max(losses) >= LARGE_LOSS:
            self.features.add("broken loss")
            return
        if min(losses) < 0:
            self.features.add("negative loss")
        if len(self.losses) < JUDGED_FROM * self.epochs - EVERY:
            return
        if swings(self.scores) >= SWINGS_FRAC * len(self.scores):
            self.features.add("swings")
        if max(self.scores) < GOOD and max(self.held_scores) < GOOD:
            self.features.add("not good")
        if largest_gain(self.scores) < LEAST_GAIN and largest_gain(self.held_scores) < LEAST_GAIN:
            self.features.add("no gain")


def static(loss: str, output: str, units: int) -> list[str]:
    """Compare loss and output by their names."""
    if not ((units <= 2 and "binary" in loss) or (units > 2 and "categorical" in loss)):
        return ["wrong loss"]
    wanted = "sigmoid" if "binary" in loss else "softmax"
    return ["wrong output"] if output != wanted and not ("binary" in loss and units == 2) else []


def of_gradients(gradients: Sequence[Tensor]) -> set[str]:
    """Judge the gradients of one batch."""
    if not all(bool(torch.isfinite(gradient).all()) for gradient in gradients):
        return {"broken gradient"}
    kernels = [float(gradient.norm()) for gradient in gradients if gradient.ndim > 1]
    first, last = kernels[0], kernels[-1]
    ratio = first / last if last else inf if first else float("nan")
    zeros = sum(int((gradient == 0).sum()) for gradient in gradients)
    found = {"vanish"} if ratio < RATIO_LOW and first < NORM_LOW else set()
    found |= {"explode"} if ratio > RATIO_HIGH else set()
    return found | ({"dead"} if zeros >= DEAD_FRAC * sum(gradient.numel() for gradient in gradients) else set())


def of_outputs(outputs: Sequence[Tensor], *, known: bool) -> set[str]:
    """Judge what the layers give for one batch."""
    rows = outputs[-1].abs().flatten(1).sum(1)
    found = {"wrong output"} if known or not bool((rows <= LARGE_OUTPUT).all()) else set()
    large = any(float(output.abs().mean()) >= LARGE_LAYER for output in outputs[:-1])
    return found | ({"large layer"} if large and not found else set())


def issues_of(features: set[str]) -> list[str]:
    """List the issues that the features make up."""
    issues = ["data"] if "large layer" in features else []
    if features & {"broken loss", "negative loss"}:
        issues += _of_broken_loss(features)
    if features & {"not good", "no gain"}:
        issues += _of_bad_course(features)
    if "swings" in features:
        issues.append("activation" if "wrong output" in features else "unstable")
    if "wrong loss" in features and "wrong output" not in features:
        issues.append("loss")
    return issues


def _of_broken_loss(features: set[str]) -> list[str]:
    if "negative loss" in features:
        return ["loss"]
    if "wrong output" in features:
        return ["activation"]
    return ["explode"] if features & {"broken weights", "broken gradient"} else []


def _of_bad_course(features: set[str]) -> list[str]:
    for feature, issue in (("wrong output", "activation"), ("dead", "relu"), ("explode", "explode")):
        if feature in features:
            return [issue]
    if "vanish" in features:
        return ["vanish"]
    return ["slow"] if {"not good", "no gain"} <= features and "large layer" not in features else []


def swings(scores: Sequence[float]) -> int:
    """Count the pairs of a local maximum and a local minimum that lie apart, taken in order."""
    inner = range(1, len(scores) - 1)
    highs = [scores[at] for at in inner if scores[at - 1] <= scores[at] >= scores[at + 1]]
    lows = [scores[at] for at in inner if scores[at - 1] >= scores[at] <= scores[at + 1]]
    return sum(high - low >= SWING for high, low in zip(highs, lows, strict=False))


def largest_gain(scores: Sequence[float]) -> float:
    """Return the largest gain from one pass to the next, at least 0."""
    return max((after - before for before, after in pairwise(scores)), default=0.0)
