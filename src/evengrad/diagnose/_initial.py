"""Whether weights are as a usual initialisation draws them: then nothing has trained them yet."""

from collections.abc import Iterable
from math import sqrt

from evengrad.diagnose._profile import without_call
from evengrad.nouns import LayerReading, ParameterReading, Reading

# Agreement with a scheme is asked for within this many standard errors of the rms that the scheme draws.
SIGMAS = 4.0
# With fewer elements the standard error is so wide that trained weights agree too.
FEWEST_ELEMENTS = 64
# The square of a normal number has a relative variance of 2, that of a uniform one of 0.8; the rms has half the error.
RELATIVE_VARIANCE = 2.0
FEWEST_INPUTS = 4
FEWEST_BIASES = 2
PLAIN_KINDS = frozenset({"Linear", "Conv1d", "Conv2d", "Conv3d"})


def looks_untrained(weights: Iterable[ParameterReading]) -> bool:
    """Tell whether all of these parameters are as drawn: biases of exactly zero, or weights of a usual scheme.

    Two biases or more that are all zero to the bit have never seen a step. Weights must all have the rms of one scheme,
    to within what chance allows: torch's own, He, Glorot, LeCun or N(0, 0.02), for embeddings N(0, 1) or N(0, 0.02). A
    trained weight of 4,096 elements agrees with one of them by chance about one time in five, so a single one is a
    hint; that three agree with the same scheme is one chance in thousands.

    Example:
        >>> weight = ParameterReading(name="a.weight", numel=4096, fan_in=64, weight_rms=1 / (3 * 64) ** 0.5)
        >>> looks_untrained([weight])
        True
        >>> looks_untrained([ParameterReading(name="a.weight", numel=4096, fan_in=64, weight_rms=0.1)])
        False
    """
    weights = list(weights)
    biases = [one for one in weights if one.name.rpartition(".")[2] == "bias" and one.fan_in == 0]
    if len(biases) >= FEWEST_BIASES and all(one.weight_rms == 0.0 for one in biases):
        return True
    weights = [one for one in weights if one not in biases]
    judged = [one for one in weights if one.numel >= FEWEST_ELEMENTS and one.weight_rms > 0.0 and one.row_spread != 0.0]
    agreed: set[str] | None = None
    for one in judged:
        schemes = {name for name, rms in _schemes(one).items() if _agrees(one.weight_rms, rms, one.numel)}
        agreed = schemes if agreed is None else agreed & schemes
    return bool(agreed)


def _schemes(one: ParameterReading) -> dict[str, float]:
    if one.fan_in <= 0:
        return {"torch": 1.0, "0.02": 0.02}
    fan_out = one.numel / one.fan_in
    return {
        "torch": 1 / sqrt(3 * one.fan_in),
        "he": sqrt(2 / one.fan_in),
        "glorot": sqrt(2 / (one.fan_in + fan_out)),
        "lecun": 1 / sqrt(one.fan_in),
        "0.02": 0.02,
    }


def _agrees(rms: float, drawn: float, count: int) -> bool:
    return abs(rms / drawn - 1.0) <= SIGMAS * sqrt(RELATIVE_VARIANCE / count) / 2


def layers_as_torch_draws_them(reading: Reading) -> frozenset[str]:
    """Name the linear and convolutional layers whose weights have the norm that torch draws by default.

    The squared norm is then a third of the number of units, whatever the inputs, with a relative standard error of
    sqrt(0.8 / elements). A reading does not tell how many elements there are; four inputs for each unit are assumed,
    and layers that have fewer may be missed.
    """
    return frozenset(without_call(layer.name) for layer in reading.layers if _as_torch_draws(layer))


def _as_torch_draws(layer: LayerReading) -> bool:
    if layer.kind not in PLAIN_KINDS or layer.weight_norm is None or layer.units * FEWEST_INPUTS < FEWEST_ELEMENTS:
        return False
    return abs(3 * layer.weight_norm**2 / layer.units - 1.0) <= SIGMAS * sqrt(0.8 / (FEWEST_INPUTS * layer.units))
