"""What the rules of plateau, oscillation and not learning share: when a run is old enough to be judged."""

from math import log

from evengrad.diagnose._ends import CROSS_ENTROPIES, form_of, rms_of, sampled
from evengrad.diagnose._trend import Trend
from evengrad.nouns import Ends, Record

# So many steps at the largest learning rate: fewer are the start of a training. Adam forgets its first moments after
# ten steps and its second after a thousand; a network moves its weights by their own size in some hundred.
FEWEST_STEPS = 100
# A run that has ended is not a start any more. Fewer steps are a trial of the code.
FEWEST_STEPS_OF_ALL = 30
# At this pace a hundred times the length of the run would take away half of the loss: it has stopped.
STOPPED_FRAC = 0.5 / 100 / 3  # of the loss, in a third of the run
# The lowest hundredth of a run lies below its level by chance, by some noise; beyond a tenth it has been better.
BETTER_FRAC = 0.1
BETTER_SIGMAS = 3.0
# What is less of the loss in a third of the run is neither a rise nor a fall that matters.
FLAT_FRAC = 0.05
# A loss without noise (the whole data in each step) that has not moved by a hundredth has not moved.
NO_NOISE_FRAC = 1e-3
NOT_MOVED_FRAC = 0.01
# Of a fit that was good to begin with the error is small against what the model gives.
ERROR_FRAC = 0.5


def is_young(trend: Trend) -> bool:
    """Tell whether too few steps have been made at a learning rate near the largest one."""
    return trend.full_steps < FEWEST_STEPS or trend.warming_up


def has_ended(trend: Trend, record: Record) -> bool:
    """Tell whether this is a run that ended by itself after more than a trial of the code."""
    live = record.source == "guard"
    return record.complete and not live and trend.full_steps >= FEWEST_STEPS_OF_ALL and not trend.warming_up


def falls(trend: Trend) -> bool:
    """Tell whether the loss still comes down, significantly and at a pace that leads somewhere."""
    return trend.still_falling and trend.late_fall >= STOPPED_FRAC * abs(trend.end)


def was_better(trend: Trend) -> bool:
    """Tell whether the loss has been below where it ends, so that something had been learnt."""
    below = trend.end - trend.best
    return below > BETTER_FRAC * abs(trend.end) and below > BETTER_SIGMAS * trend.end_noise


def at_constant(trend: Trend) -> bool:
    """Tell whether the loss is no better than a constant prediction, was never better, and does not rise.

    A loss that rises to that level is that of a game, or diverges.
    """
    if trend.level is None or not trend.level.no_better or was_better(trend):
        return False
    return not (trend.rising and -trend.late_fall > FLAT_FRAC * abs(trend.end))


def stuck_at_constant(trend: Trend) -> bool:
    """Tell whether the loss has stopped falling there; far above the constant only if noise hides no fall."""
    if trend.level is None or not at_constant(trend) or falls(trend):
        return False
    hidden = trend.late_fall + 2.0 * trend.late_error
    return trend.level.ratio <= 1.0 + FLAT_FRAC or hidden <= FLAT_FRAC * abs(trend.end)


def came_down(trend: Trend) -> bool:
    """Tell whether the loss has come down to where it is, by more than a constant prediction can be missed."""
    return trend.fell and trend.start - trend.end > 0.05 * abs(trend.end)


def never_moved(trend: Trend, record: Record) -> bool:
    """Tell whether a loss without noise has stayed at its start, with an error as large as the output itself.

    For losses whose constant is not known. A noisy loss that does not move may be that of a model that was good to
    begin with.
    """
    if trend.level is not None or not trend.from_start or trend.end <= 0.0 or falls(trend):
        return False
    if max(trend.start_noise, trend.end_noise) > NO_NOISE_FRAC * trend.end:
        return False
    if abs(trend.start - trend.end) > NOT_MOVED_FRAC * trend.start:
        return False
    seen = [reading.ends for reading in sampled(record) if reading.ends is not None]
    return len(seen) > 0 and all(_is_far_off(ends, trend.end) for ends in seen)


def _is_far_off(ends: Ends, loss: float) -> bool:
    form, output = form_of(ends), ends.output
    if form is None or not form.alone or output is None:
        return False
    if form.name in CROSS_ENTROPIES:
        return ends.softmax_size is not None and ends.softmax_size > 1 and loss >= ERROR_FRAC * log(ends.softmax_size)
    size = ERROR_FRAC * rms_of(output)
    return loss >= (size**2 if form.name == "squared error" else size)
