"""A learning-rate schedule that does not advance on a skipped step."""

from collections.abc import Callable
from typing import Any, final

from evengrad.nouns import SettingError


@final
class Gate:
    """A scheduler whose `step` does nothing after a skipped step; in all else it is the scheduler.

    Args:
        scheduler: The scheduler; it is not changed.
        steps: How many steps of optimizers have begun.
        skipped: Whether the last step was skipped.

    Raises:
        SettingError: It has no `step`.
    """

    def __init__(self, scheduler: Any, steps: Callable[[], int], skipped: Callable[[], bool]) -> None:
        if not callable(getattr(scheduler, "step", None)):
            raise SettingError("scheduler", came=type(scheduler).__name__, wanted="an object with a step()")
        self._scheduler = scheduler
        self._steps, self._skipped = steps, skipped
        self._before = steps()

    def step(self, *args: Any, **kwargs: Any) -> None:
        """Advance the schedule, unless the last step was skipped, or was left out by a scaler or the loop."""
        before, self._before = self._before, self._steps()
        if self._before > before and not self._skipped():
            self._scheduler.step(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # copying and pickling ask before there is a scheduler
            raise AttributeError(name)
        return getattr(self._scheduler, name)

    def __repr__(self) -> str:
        return f"Gate({self._scheduler!r})"
