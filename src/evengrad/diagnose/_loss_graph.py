"""What in the graph of a loss can make NaN or infinity out of finite numbers, by the names that torch gives."""

from evengrad.nouns import Ends, TensorReading

LOGARITHMS = frozenset({"Log", "Log2", "Log10", "Log1P", "Xlogy", "Logit"})
ROOTS = frozenset({"Sqrt", "Rsqrt"})
QUOTIENTS = frozenset({"Div", "Reciprocal", "Rsqrt"})
NORMS = frozenset({"LinalgVectorNorm", "Norm", "Cdist", "PairwiseDistance"})
ARCS = frozenset({"Acos", "Asin", "Atanh", "Acosh"})
POWERS = frozenset({"Pow", "Exp", "Expm1", "Exp2", "Cosh", "Sinh", "Prod", "Tan"})
SQUARES = frozenset({"MseLoss", "Pow", "Mul", "Bmm", "Mm"})

LARGEST = {"float16": 65504.0, "bfloat16": 3.39e38, "float32": 3.40e38, "float64": 1.80e308}
SMALLEST_NORMAL = {"float16": 6.11e-5, "bfloat16": 1.18e-38, "float32": 1.18e-38, "float64": 2.23e-308}
IGNORED_LABEL = -100  # the default of ignore_index in torch's losses


def risks(ends: Ends | None) -> tuple[str, ...]:
    """List in words what the loss takes that is not defined everywhere."""
    ops = frozenset(() if ends is None else ends.loss_ops)
    kinds = (
        (LOGARITHMS, "a logarithm"),
        (ROOTS, "a root"),
        (QUOTIENTS, "a quotient"),
        (NORMS, "a norm or distance"),
        (ARCS, "an arc function"),
        (POWERS, "a power or an exponential"),
    )
    return tuple(words for names, words in kinds if ops & names)


def certain_cause(ends: Ends | None) -> str:
    """Say why a loss of finite numbers is not finite, where output, target and graph leave no doubt; else nothing."""
    if ends is None:
        return ""
    ops, output, target = frozenset(ends.loss_ops), ends.output, ends.target
    if target is not None and target.finite_frac < 1.0:
        return f"the target holds NaN or infinity ({1 - target.finite_frac:.1%} of its elements): look at the data"
    if output is None:
        return ""
    if output.finite_frac < 1.0:
        return "a mistake in the code: an operation in the model's forward, after its last module, is not finite"
    if _all_ignored(target):
        return f"every label of the batch is {IGNORED_LABEL}, which the loss ignores: its mean is 0 / 0"
    return _outside(ops, output) or _overflow(ops, output)


def _outside(ops: frozenset[str], output: TensorReading) -> str:
    """Judge what the model's output itself is given to; an operation between changes the range, so it must be next."""
    logarithm, squashed = ops & (LOGARITHMS - {"Log1P"}), ops & {"Softmax", "Sigmoid"}
    if logarithm and output.minimum >= 0.0 and output.maximum <= 1.0 and (output.minimum, output.maximum) != (0.0, 0.0):
        if output.minimum == 0.0 or output.maximum == 1.0:
            return (
                "a mistake in the code: the loss takes the logarithm of probabilities that are exactly 0 or 1 by "
                "rounding; use a loss that takes logits"
            )
    elif logarithm and squashed:
        return (
            f"a mistake in the code: the loss takes the logarithm of a {min(squashed).lower()} that is zero by "
            "rounding; use log_softmax or logsigmoid, or a loss that takes logits"
        )
    elif logarithm and output.minimum <= 0.0 and not ops & {"Softplus", "Exp", "Abs", "Pow"}:
        return (
            f"a mistake in the code: the loss takes the logarithm of an output that is as low as {output.minimum:.3g}; "
            "keep it above zero (clamp it to a small number), or use a loss that takes logits"
        )
    if ops & {"Sqrt"} and output.minimum < 0.0 and not ops & {"Pow", "Abs", "Mul", "MseLoss"}:
        return f"a mistake in the code: the loss takes the root of an output that is as low as {output.minimum:.3g}"
    if ops & {"Acos", "Asin", "Atanh"} and max(abs(output.minimum), abs(output.maximum)) >= 1.0:
        return (
            f"a mistake in the code: the loss takes an arc function of an output between {output.minimum:.3g} and "
            f"{output.maximum:.3g}; clamp it to the inside of -1 to 1"
        )
    return ""


def _overflow(ops: frozenset[str], output: TensorReading) -> str:
    """Tell whether the square of the output, or its exponential, is beyond what the output's dtype holds."""
    largest = max(abs(output.minimum), abs(output.maximum))
    most = LARGEST.get(output.dtype, LARGEST["float32"])
    if ops & SQUARES and largest > most**0.5:
        return f"the output is as large as {largest:.1e}: its square is beyond what {output.dtype} holds"
    return ""


def _all_ignored(target: TensorReading | None) -> bool:
    return (
        target is not None
        and target.dtype.startswith("int")
        and bool(target.shape)
        and target.minimum == target.maximum == IGNORED_LABEL
    )
