"""Every error and warning that evengrad raises, as one tree."""


class EvengradError(Exception):
    """Say what is wrong: the thing, what came, what is wanted, what to do.

    Args:
        what: The thing that is wrong, as the user knows it: an argument, a path, a layer.
        came: What was found there.
        wanted: What would have been right.
        advice: What to do about it; may be empty.

    Example:
        >>> str(EvengradError("max_norm", came="-1.0", wanted="a positive number"))
        'max_norm: got -1.0, want a positive number'
    """

    def __init__(self, what: str, *, came: str, wanted: str, advice: str = "") -> None:
        self.what = what
        self.came = came
        self.wanted = wanted
        self.advice = advice
        super().__init__(f"{what}: got {came}, want {wanted}" + (f"; {advice}" if advice else ""))

    def __reduce__(self) -> tuple[object, ...]:
        """Make pickling work although `wanted` and `came` are keyword-only: trials cross processes."""
        return _rebuild, (type(self), self.what, self.came, self.wanted, self.advice)


def _rebuild(kind: type[EvengradError], what: str, came: str, wanted: str, advice: str) -> EvengradError:
    return kind(what, came=came, wanted=wanted, advice=advice)


class SettingError(EvengradError, ValueError):
    """A setting is out of range or of the wrong kind."""


class ModelError(EvengradError):
    """The model cannot be worked with: it has no parameters, or its weights are not finite."""


class OptimizerError(EvengradError):
    """The optimizer does not fit the model, or steps in a way that a guard cannot be right with."""


class LossError(EvengradError):
    """The loss is not a scalar, has no graph, or raised."""


class BatchError(EvengradError):
    """A batch or a data set is empty, not finite, or of a shape nobody asked for."""


class BadDataError(BatchError):
    """A batch has values that are NaN or infinite: the data have to change."""


class TaskError(EvengradError):
    """A task cannot be found, cannot be built, or raised while it ran."""


class TreatmentError(EvengradError):
    """A treatment does not apply to this model or task."""


class RunLogError(EvengradError):
    """A run directory cannot be read or written."""


class NotARunError(RunLogError):
    """The directory is not a run of evengrad."""


class NewerRunError(RunLogError):
    """The run was written by a newer evengrad, in a version that this one does not know."""


class TooManySkipsError(EvengradError):
    """So many steps in a row were skipped that the run is over."""


class NonFiniteError(EvengradError, ArithmeticError):
    """An activation, or a gradient that flows back, is not finite or too large."""


class UnknownRuleError(EvengradError, KeyError):
    """No rule has this code."""

    __str__ = Exception.__str__  # KeyError would print the message in quotes


class EvengradWarning(UserWarning):
    """The root of evengrad's warnings."""


class TornLogWarning(EvengradWarning):
    """The end of a run log is missing: what was flushed before is there."""


class UnguardedStepWarning(EvengradWarning):
    """A step went by that the guard could not see."""
