"""What fails while a training is looked into ends the looking, never the training."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, final

from evengrad.nouns import printable

_LOGGER = logging.getLogger("evengrad.probe")


@final
class Trouble:
    """Remember that looking has failed, and say so once; the hooks of a sampler share one.

    A user's forward or backward may do what nobody has thought of: trace itself, run inside of a transform, hand over
    tensors that cannot be copied. Whatever a hook then raises must not come out of the user's own call.
    """

    def __init__(self) -> None:
        self.seen = False

    def note(self, err: Exception) -> None:
        """Take note of a failure."""
        if not self.seen:
            self.seen = True
            said = printable(f"{type(err).__name__}: {err}"[:300])
            _LOGGER.warning("layers are not sampled any more, the training goes on: %s", said)

    def safely(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """Make a function that gives None where the given one raises, and from then on."""

        def attempt(*args: Any, **kwargs: Any) -> Any:
            if self.seen:
                return None
            try:
                return run(*args, **kwargs)
            except Exception as err:
                self.note(err)
                return None

        return attempt
