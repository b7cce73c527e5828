"""Count the steps left out and clipped, say so, and stop a run that only skips."""

import logging
from collections.abc import Callable, Sequence
from typing import final

import numpy as np

from evengrad.guard._blame import Blame
from evengrad.guard._outcome import Outcome
from evengrad.nouns import Event, TooManySkipsError, shortened

LOGGER = logging.getLogger("evengrad.guard")
NAMED = 5  # names in a message


@final
class Counts:
    """Count skipped and clipped steps, and tell of them.

    Every one is counted and handed to `on_event`. The 1st, 2nd, 4th, 8th, ... skip in a row is logged, so that a log is
    not flooded; clipped steps are not. After such a skip the modules are watched for one step; once it is seen where a
    value that is not finite begins, every later message and event of the row says so.

    Args:
        most_in_a_row: More skips in a row raise.
        blame: Finds the module.
        on_event: Called with each event; None for nobody.
    """

    def __init__(self, most_in_a_row: float, blame: Blame, on_event: Callable[[Event], object] | None) -> None:
        self.most_in_a_row = most_in_a_row
        self.skips = 0
        self.clips = 0
        self.in_a_row = 0
        self._place = ""  # where this row of skips begins, once it was seen
        self._blame = blame
        self._on_event = on_event

    def note(self, outcome: Outcome | None, step: int, names: Sequence[str]) -> Event | None:
        """Count a step; returns the event that it is, when it is one."""
        self._place = self._culprit() or self._place
        if outcome is None or not outcome.skipped:
            self.in_a_row, self._place = 0, ""
            if outcome is None or outcome.scale == 1.0:
                return None
            self.clips += 1
            if self._on_event is None:
                return None
            return Event(kind="clipped", step=step, norm=outcome.norm, scale=outcome.scale, reason=_clipped(outcome))
        self.skips += 1
        self.in_a_row += 1
        bad = bad_names(outcome, names)
        reason = _reason(outcome, bad)
        if not outcome.overflow and bad and (self._place or self.in_a_row & (self.in_a_row - 1) == 0):
            reason = "; ".join([reason, *self._where(bad)])
            if not self._place:
                self._blame.arm()
        if self.in_a_row & (self.in_a_row - 1) == 0:
            level = logging.INFO if outcome.overflow else logging.WARNING
            LOGGER.log(level, "step %d skipped (%d in a row): %s", step, self.in_a_row, reason)
        return Event(kind="skipped", step=step, norm=outcome.norm, parameters=bad, reason=reason)

    def tell(self, event: Event) -> None:
        """Hand an event to whoever wants to hear of it."""
        if self._on_event is not None:
            self._on_event(event)

    def check(self, event: Event | None) -> None:
        """Stop a run that only skips.

        Raises:
            TooManySkipsError: More in a row than allowed.
        """
        if event is not None and event.kind == "skipped" and self.in_a_row > self.most_in_a_row:
            raise TooManySkipsError(
                "gradients",
                came=f"{self.in_a_row} skipped steps in a row, the last at step {event.step}: {event.reason}",
                wanted=f"at most {self.most_in_a_row}",
                advice="lower the learning rate, or look at these layers' inputs",
            )

    def close(self) -> None:
        """Watch no module any more."""
        self._blame.disarm()

    def _culprit(self) -> str:
        """Say what the modules' watch has seen, when there is one, and end it."""
        if not self._blame.armed:
            return ""
        self._blame.disarm()
        try:
            found = self._blame.verdict()
        except Exception:  # what a hook has seen inside another program's machinery may not be readable: say nothing
            return ""
        return str(found) if found is not None else ""

    def _where(self, bad: Sequence[str]) -> list[str]:
        """Say where it begins: what was seen in this row of skips, or else what can be told from here."""
        if self._place:
            return [self._place]
        weights = self._blame.weights_at_fault()
        if weights:
            self._place = f"not finite themselves: {shortened(weights[:NAMED])}{_more(weights)}"
            return [self._place]
        return [str(self._blame.from_gradients(bad))]


def bad_names(outcome: Outcome, names: Sequence[str]) -> tuple[str, ...]:
    """Name the parameters whose gradient norm is not finite."""
    return tuple(names[place] for place in np.flatnonzero(~np.isfinite(outcome.norms_P)).tolist())


def _reason(outcome: Outcome, bad: Sequence[str]) -> str:
    if outcome.overflow:
        return "the GradScaler's scale is too large for these gradients: it is looking for a smaller one"
    lost = outcome.loss is not None and not np.isfinite(outcome.loss)
    if bad:
        said = f"gradient not finite: {shortened(tuple(bad[:NAMED]))}{_more(bad)}"
        return f"{said}; the loss was {outcome.loss}" if lost else said
    if lost:
        return f"loss not finite ({outcome.loss})"
    if not np.isfinite(outcome.norm):
        return "gradient not finite: no single parameter: all norms together, or a parameter that is not guarded"
    loss = "" if outcome.loss is None else f", loss {outcome.loss:.4g}"
    return f"left out by the policy: gradient norm {outcome.norm:.4g}{loss}"


def _clipped(outcome: Outcome) -> str:
    return f"gradient norm {outcome.norm:.4g}, smallest factor {outcome.scale:.4g}"


def _more(names: Sequence[str]) -> str:
    return f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
