"""The families of faults, and which of them brings which about."""

# From causes to consequences: where two are seen first at the same step, the earlier one here comes first.
FAMILIES = (
    "bad-data",
    "labels",
    "precision",  # a gradient that is all zero looks cut
    "signal-cut",
    "softmax-twice",
    "activation-on-logits",
    "output-range",
    "wrong-backward",
    "zero-grad",
    "batch-norm",
    "input-scale",
    "target-scale",
    "collapsed",
    "layer-out-of-line",
    "init-large",
    "init-small",
    "weight-decay",
    "exploding-time",  # a cell in a loop that explodes looks like a deep network that does
    "exploding-depth",
    "dead",
    "saturated",
    "gates",
    "vanishing-depth",
    "vanishing-time",
    "spike",  # one batch that moves the weights by their own size is no learning rate
    "lr-high",
    "norm-drift",
    "epsilon",
    "clipping",
    "lr-low",
    "stale-weights",
    "non-finite",
    "oscillation",
    "divergence",
    "plateau",
    "not-learning",
)

# Of two codes of a family at the same step the smaller one comes first, but for these: a gradient is not finite because
# the loss is not.
LAST_OF_THEIR_FAMILY = frozenset({"EG202"})

# What is there before the first step, whenever it was seen: it cannot be a consequence of what the steps did.
GIVEN = frozenset(
    {
        "bad-data",
        "labels",
        "softmax-twice",
        "activation-on-logits",
        "output-range",
        "wrong-backward",
        "zero-grad",
        "input-scale",
        "target-scale",
        "layer-out-of-line",
        "init-large",
        "init-small",
    }
)

_LOSS = ("oscillation", "divergence", "plateau", "not-learning")
_STEPS = ("precision", "epsilon", "lr-low", "stale-weights")
_UNITS = ("dead", "saturated", "gates")
_SIGNAL = ("exploding-depth", "exploding-time", "vanishing-depth", "vanishing-time")
_BLOW_UP = ("lr-high", "spike", "norm-drift", "non-finite")
_GROWTH = frozenset({"exploding-depth", "exploding-time", *_BLOW_UP, "divergence"})
_ALL_BELOW = (*_SIGNAL, *_UNITS, "collapsed", "signal-cut", "batch-norm", *_STEPS, "clipping", *_BLOW_UP, *_LOSS)

BRINGS: dict[str, frozenset[str]] = {
    "bad-data": frozenset({*_ALL_BELOW, "input-scale", "target-scale", "output-range", "labels"}),
    "labels": frozenset({*_ALL_BELOW, "output-range"}),
    "signal-cut": frozenset({*_STEPS, *_LOSS, "vanishing-depth", "dead", "collapsed"}),
    "softmax-twice": frozenset({*_STEPS, *_LOSS, "vanishing-depth", "saturated"}),
    "activation-on-logits": frozenset({*_ALL_BELOW, "output-range"}),
    "output-range": frozenset({*_UNITS, *_STEPS, *_BLOW_UP, *_LOSS, "vanishing-depth", "signal-cut", "target-scale"}),
    "wrong-backward": frozenset({*_SIGNAL, *_UNITS, *_BLOW_UP, *_LOSS}),
    "zero-grad": frozenset({*_SIGNAL, *_UNITS, *_BLOW_UP, *_LOSS, "clipping", "collapsed"}),
    "batch-norm": frozenset({*_SIGNAL, *_UNITS, *_BLOW_UP, *_LOSS}),
    "input-scale": frozenset({*_ALL_BELOW, "layer-out-of-line", "init-large"}),
    "target-scale": frozenset(_ALL_BELOW),
    "collapsed": frozenset({*_SIGNAL, *_UNITS, *_STEPS, *_BLOW_UP, *_LOSS, "signal-cut", "init-large", "init-small"}),
    "layer-out-of-line": frozenset({*_ALL_BELOW, "init-large", "init-small"}),
    "init-large": frozenset(_ALL_BELOW),
    "init-small": frozenset(_ALL_BELOW) - _GROWTH,  # a signal that is too small cannot blow up by that
    "weight-decay": frozenset(_ALL_BELOW),
    "exploding-depth": frozenset({*_UNITS, *_BLOW_UP, *_LOSS, "vanishing-depth", "clipping", "collapsed", "epsilon"}),
    "exploding-time": frozenset({*_SIGNAL, *_UNITS, *_BLOW_UP, *_LOSS, "clipping"} - {"exploding-time"}),
    "dead": frozenset({"vanishing-depth", "vanishing-time", "signal-cut", "collapsed", *_STEPS, *_LOSS}),
    "saturated": frozenset({"vanishing-depth", "vanishing-time", "exploding-depth", "gates", *_STEPS, *_LOSS}),
    "gates": frozenset({"vanishing-time", *_STEPS, *_LOSS}),
    "vanishing-depth": frozenset({"dead", "signal-cut", "collapsed", *_STEPS, *_LOSS}),
    "vanishing-time": frozenset({*_STEPS, *_LOSS}),
    "lr-high": frozenset(
        {*_SIGNAL, *_UNITS, "collapsed", "signal-cut", "clipping", "spike", "norm-drift", "non-finite", *_LOSS}
    ),
    "precision": frozenset({"stale-weights", "signal-cut", "non-finite", *_LOSS}),
    "epsilon": frozenset({"lr-low", "stale-weights", *_LOSS}),
    "clipping": frozenset({"lr-low", "stale-weights", *_LOSS}),
    "lr-low": frozenset({"stale-weights", *_LOSS}),
    "stale-weights": frozenset({"lr-low", *_LOSS}),
    "spike": frozenset({*_SIGNAL, *_UNITS, "lr-high", "norm-drift", "non-finite", *_LOSS}),
    "norm-drift": frozenset({*_SIGNAL, *_UNITS, "non-finite", *_LOSS}),
    # NaN in one place is NaN everywhere behind it, and one step later in every weight
    "non-finite": frozenset({*_SIGNAL, *_UNITS, *_STEPS, "collapsed", "signal-cut", *_BLOW_UP, *_LOSS}),
    "oscillation": frozenset({"divergence", "plateau", "not-learning"}),
    "divergence": frozenset({*_SIGNAL, *_UNITS, "collapsed", "signal-cut", "non-finite", "plateau", "not-learning"}),
    "plateau": frozenset({"not-learning"}),
    "not-learning": frozenset(),
}
