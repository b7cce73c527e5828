"""A metric that the training had and did not hold, where no rule of the gradients speaks."""

from __future__ import annotations

from evengrad.nouns import Trial
from evengrad.treat import AbstractTreatment, ClipGradients, ScaleLearningRate, SwapOptimizer

# A training that ends so far below what it had, as a share of what it had gained, has lost it: overfitting and noise of
# small validation sets take a few hundredths.
FALLEN_FRAC = 0.15
STEADIERS: tuple[AbstractTreatment, ...] = (
    ScaleLearningRate(factor=0.1),
    ScaleLearningRate(factor=0.01),
    ClipGradients(max_norm=1.0),
    SwapOptimizer(to="adamw"),
)


def fell_back(trial: Trial) -> str:
    """Say from where to where a metric fell; empty when it held.

    Args:
        trial: Untreated, with its metrics on the way.
    """
    known = [(step, metric) for step, metric in trial.metrics if metric is not None]
    if len(known) < 3 or trial.metric is None:
        return ""
    values = [metric for _, metric in known]
    step, best = max(known, key=lambda pair: pair[1])
    gained = best - min(values)
    if best - trial.metric <= FALLEN_FRAC * max(gained, abs(best)):
        return ""
    return f"No rule speaks, but the metric was {best:.3g} after {step} steps and is {trial.metric:.3g} at the end."
