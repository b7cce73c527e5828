"""The tables of layers and parameters, in every version that was ever written."""

from evengrad.nouns import LayerReading, ParameterReading
from evengrad.runlog._tables import Number, TableOfMany

# What names a set of layers; everything else may change from step to step, as a batch may be of another size.
_LAYER_1 = (("name", str), ("kind", str), ("weighted", bool), ("nonlinearity", str | None))
_LAYER_2 = (*_LAYER_1, ("after", tuple | None), ("gate", bool))

_NUMBERS_1 = (
    Number(name="numel", kind="int64"),
    Number(name="units", kind="int64"),
    Number(name="observations", kind="int64"),
    Number(name="activation_rms"),
    Number(name="activation_absmax"),
    Number(name="zero_frac"),
    Number(name="dead_frac"),
    Number(name="saturated_frac", nullable=True),
    Number(name="grad_rms", nullable=True),
    Number(name="weight_norm", nullable=True),
    Number(name="weight_grad_norm", nullable=True),
    Number(name="input_finite", kind="bool"),
    Number(name="output_finite", kind="bool"),
    Number(name="grad_finite", kind="bool"),
)

_NUMBERS_2 = (
    *_NUMBERS_1,
    Number(name="activation_mean"),
    Number(name="training", kind="bool"),
    Number(name="tracked", kind="int64", nullable=True),
    Number(name="logit_absmax", nullable=True),
)

_LISTS_1 = (("time_grad_rms", "time_steps"),)
_LISTS_2 = (*_LISTS_1, ("gate_stuck_frac", "gates_stuck"), ("gate_mean", "gates"))

LAYERS_1 = TableOfMany(name="layers", version=1, noun=LayerReading, fixed=_LAYER_1, numbers=_NUMBERS_1, lists=_LISTS_1)
LAYERS = TableOfMany(name="layers", version=2, noun=LayerReading, fixed=_LAYER_2, numbers=_NUMBERS_2, lists=_LISTS_2)

WEIGHTS = TableOfMany(
    name="weights",
    version=1,
    noun=ParameterReading,
    fixed=(("name", str), ("numel", int), ("fan_in", int), ("dtype", str)),
    numbers=(
        Number(name="weight_rms"),
        Number(name="weight_mean"),
        Number(name="grad_rms", nullable=True),
        Number(name="grad_absmax", nullable=True),
        Number(name="grad_zero_frac", nullable=True),
        Number(name="grad_tiny_frac", nullable=True),
        Number(name="update_ratio", nullable=True),
        Number(name="still_frac", nullable=True),
        Number(name="moved_ratio", nullable=True),
        Number(name="row_spread", nullable=True),
        Number(name="grad_row_spread", nullable=True),
    ),
)
