"""EG206: attention scores have grown beyond what a softmax resolves."""

from math import isfinite
from typing import ClassVar, final

from evengrad.diagnose._abstract import AbstractRunRule, Sign, Tells
from evengrad.diagnose._profile import decades_between
from evengrad.diagnose._proposals import CLIPPING, SMALLER_STEPS, cure
from evengrad.nouns import Cure, Evidence, Reading, Record

# exp(-88) is below the smallest normal number of float32 and bfloat16: next to a score that is 88 higher, nothing of a
# position is left, neither in the forward nor in the slope p (1 - p). Narrower dtypes get there earlier.
THRESHOLD = 88.0
# Scores that started so large were meant to be (a low temperature); what trouble comes of has grown.
FEWEST_TIMES = 2.0


@final
class AttentionLogitsLarge(AbstractRunRule):
    """Attention logits large: scores have grown until the softmax gives everything to one position.

    Sees:
        The largest magnitude of the scores before the softmax in attention modules. The rule speaks when it is above
        88 at the last reading, twice of what it was at the first, and has not come down since the middle between:
        exp(-88) is where float32 and bfloat16 end.

    Hurts:
        The softmax is one-hot, its slope is zero, and no gradient reaches queries and keys any more: they cannot come
        back. In large transformers the loss diverges some time later.

    Cure:
        Normalise queries and keys before their product, a smaller learning rate (ScaleLearningRate), a longer
        warm-up (WarmUp), weight decay on the projections, clipped gradients (ClipGradients).

    False alarms:
        Heads that copy are sharp on purpose, and what one score is above all others by does not depend on its
        magnitude; so it is told only in a run that another rule has found sick.

    Source:
        Dehghani et al. 2023, arXiv 2302.05442, section 2; Wortsman et al. 2023, arXiv 2309.14322.
    """

    code: ClassVar[str] = "EG206"
    symptom: ClassVar[str] = "attention logits large"
    source: ClassVar[str] = "Dehghani et al. 2023, Scaling Vision Transformers to 22 Billion Parameters"
    family: ClassVar[str] = "saturated"
    tells: ClassVar[Tells] = "cause"

    def judge(self, record: Record) -> Sign | None:
        """Compare the first, the middle and the last reading in which attention was seen."""
        seen = [reading for reading in record.readings if _scores(reading)]
        if not seen:
            return None
        first, middle, last = (_scores(reading) for reading in (seen[0], seen[len(seen) // 2], seen[-1]))
        size = max(last.values())
        grown = {
            name: score
            for name, score in last.items()
            if score > THRESHOLD and score >= FEWEST_TIMES * first.get(name, score) and score >= middle.get(name, score)
        }
        if not grown:
            return Sign(decades=max(0.0, decades_between(THRESHOLD, size)))
        worst = max(grown, key=lambda name: grown[name])
        onset = next(reading for reading in seen if max(_scores(reading).values()) > THRESHOLD)
        return Sign(
            decades=max(0.0, decades_between(THRESHOLD, grown[worst])),
            speaks=True,
            where=tuple(grown),
            severity="warning",
            when=(onset.step, seen[-1].step),
            message=(
                f"the attention scores of `{worst}` have grown from {first[worst]:.3g} to {grown[worst]:.3g}; a "
                f"softmax in float32 gives nothing to what is {THRESHOLD:.0f} below the largest"
            ),
            evidence=(
                Evidence(name=f"largest score of {worst} at step {seen[0].step}", value=first[worst]),
                Evidence(name=f"largest score of {worst} at step {seen[-1].step}", value=grown[worst]),
            ),
        )

    def cures(self) -> tuple[Cure, ...]:
        """Propose smaller steps; the normalisation of queries and keys is a change of the code."""
        return (cure("WarmUp"), *SMALLER_STEPS[:1], *CLIPPING)


def _scores(reading: Reading) -> dict[str, float]:
    scores = ((layer.name, layer.logit_absmax) for layer in reading.layers)
    return {name: score for name, score in scores if score is not None and isfinite(score)}
