"""What is worth a trial though no rule speaks at the end: a metric that did not hold, much loss left, a rule before."""

from __future__ import annotations

from evengrad.diagnose import AbstractRule, loss_left, rules
from evengrad.nouns import Record, Trial
from evengrad.treat import AbstractTreatment, ClipGradients, ScaleLearningRate, SwapOptimizer, make
from evengrad.trial._course import Course

# A training that ends so far below what it had, as a share of what it had gained, has lost it: overfitting and noise of
# small validation sets take a few hundredths.
FALLEN_FRAC = 0.15
# More than this of the loss of the best constant prediction is left: it may be all that can be learnt, or not.
LEFT_FRAC = 0.5
STEADIERS: tuple[AbstractTreatment, ...] = (
    ScaleLearningRate(factor=0.1),
    ScaleLearningRate(factor=0.01),
    ClipGradients(max_norm=1.0),
    SwapOptimizer(to="adamw"),
)


def suspected(scout: Course) -> tuple[list[AbstractTreatment], list[str]]:
    """List what may help a training in which no rule speaks at the end, and say why it is tried.

    Nothing is called sick for that: what comes of it is *improved* at the most, where the metric gains on every seed.

    Args:
        scout: The untreated training.
    """
    treatments: list[AbstractTreatment] = []
    notes = []
    if fall := fell_back(scout.trial):
        treatments += STEADIERS
        notes.append(f"No rule speaks, but {fall}: what makes steps steadier was tried.")
    left = loss_left(scout.record)
    if left is not None and left >= LEFT_FRAC:
        treatments += [*STEADIERS, ScaleLearningRate(factor=10.0)]
        notes.append(
            f"No rule speaks, but {left:.0%} of the loss of the best constant is left: other steps were tried."
        )
    early = spoke_early(scout.record)
    for code, step in early.items():
        rule = next(one for one in rules.ALL if one.code == code)
        treatments += [make(cure.treatment, cure.settings) for cure in rule.cures()]
        notes.append(f"{code} spoke until step {step} and fell silent: its cures were tried.")
    return list({one.label: one for one in treatments}.values()), notes


def fell_back(trial: Trial) -> str:
    """Say from where to where a metric fell; empty when it held.

    Args:
        trial: Untreated, with its metrics on the way.
    """
    known = [(step, metric) for step, metric in trial.metrics if metric is not None]
    if len(known) < 3 or trial.metric is None:
        return ""
    step, best = max(known, key=lambda pair: pair[1])
    gained = best - min(metric for _, metric in known)
    if best - trial.metric <= FALLEN_FRAC * max(gained, abs(best)):
        return ""
    return f"the metric was {best:.3g} after {step} steps and is {trial.metric:.3g} at the end"


def spoke_early(record: Record) -> dict[str, int]:
    """List the rules that spoke of harm in a reading on the way, and the last step at which they did."""
    spoke: dict[str, int] = {}
    for rule in rules.ALL:
        if not isinstance(rule, AbstractRule) or rule.tells == "cause":
            continue
        for reading in record.readings:
            sign = rule.sign(reading, record)
            if sign is not None and sign.speaks:
                spoke[rule.code] = reading.step
    return spoke
