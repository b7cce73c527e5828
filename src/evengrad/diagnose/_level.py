"""What the rules of plateau, oscillation and not learning share: when a run is old enough to be judged."""

from evengrad.diagnose._trend import Trend
from evengrad.nouns import Record

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


def stuck_at_constant(trend: Trend) -> bool:
    """Tell whether the loss is where a constant prediction has it, has never been better and has stopped falling."""
    return trend.level is not None and trend.level.no_better and not falls(trend) and not was_better(trend)


def came_down(trend: Trend) -> bool:
    """Tell whether the loss has come down to where it is, by more than a constant prediction can be missed."""
    return trend.fell and trend.start - trend.end > 0.05 * abs(trend.end)
