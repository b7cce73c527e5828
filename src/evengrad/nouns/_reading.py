"""Readings: the numbers measured at one step, and the record that holds those of a run."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerReading:
    """What one module did in one forward and backward.

    A module that is called several times in one forward has one reading per call, named `name`, `name#2`, ...

    Args:
        name: The module's dotted name in the model; the model itself is `(model)`.
        kind: The module's class name.
        weighted: Whether the module itself owns a weight of two or more dimensions.
        nonlinearity: The non-linearity that the module is, in torch's functional spelling (`relu`, `sigmoid`, ...).
        numel: Elements of the output, all samples together.
        units: Units of the output: features of a dense layer, channels of a convolution.
        observations: How often each unit was seen: samples times positions.
        activation_rms: Root mean square of the output; over the finite elements where some are not finite.
        activation_absmax: Largest finite magnitude of the output.
        zero_frac: Share of output elements that are exactly zero.
        dead_frac: Share of units whose output is zero at every observation.
        saturated_frac: Share of output elements where a saturating non-linearity has lost 95 % of its largest slope;
            None for modules that do not saturate.
        grad_rms: Root mean square of the loss gradient with respect to the output; None when none arrived.
        weight_norm: Norm of the module's own weights (all its parameters of two or more dimensions).
        weight_grad_norm: Norm of the loss gradient with respect to those weights.
        input_finite: Whether every floating-point input tensor was finite.
        output_finite: Whether every output tensor was finite.
        grad_finite: Whether the gradient at the output was finite; True when none arrived.
        time_grad_rms: For recurrent modules, root mean square of the gradient with respect to the input at each time
            step, earliest first; empty otherwise.
        activation_mean: Mean of the output over the finite elements.
        training: Whether the module was in training mode.
        tracked: Batches that the running statistics of a normalisation layer have seen; None where it keeps none.
        logit_absmax: For attention, the largest magnitude of the scores before the softmax, mask left out; over a
            sample of queries. None for all else.
        gate_stuck_frac: For LSTM and GRU, the share of units whose gate was shut or open (below 0.01 or above 0.99) at
            every observation, a number for each gate in torch's order (input, forget, output; reset, update).
        gate_mean: The mean of each of these gates.
        after: The calls directly before it in the graph, by their `name`, in the order of the forward pass; one that is
            also before another of them is left out, as the start of a shortcut is. None where nobody knows.
        gate: Whether it is a saturating non-linearity with whose output others are multiplied, and nothing else is
            done.
    """

    name: str
    kind: str
    weighted: bool = False
    nonlinearity: str | None = None
    numel: int = 0
    units: int = 0
    observations: int = 0
    activation_rms: float = 0.0
    activation_absmax: float = 0.0
    zero_frac: float = 0.0
    dead_frac: float = 0.0
    saturated_frac: float | None = None
    grad_rms: float | None = None
    weight_norm: float | None = None
    weight_grad_norm: float | None = None
    input_finite: bool = True
    output_finite: bool = True
    grad_finite: bool = True
    time_grad_rms: tuple[float, ...] = ()
    activation_mean: float = 0.0
    training: bool = True
    tracked: int | None = None
    logit_absmax: float | None = None
    gate_stuck_frac: tuple[float, ...] = ()
    gate_mean: tuple[float, ...] = ()
    after: tuple[str, ...] | None = None
    gate: bool = False

    @property
    def grad_norm(self) -> float | None:
        """Norm of the gradient at the output over all its elements: unlike the rms it compares across layer sizes.

        None when no gradient arrived, NaN when one arrived that is not finite.
        """
        if self.grad_rms is None:
            return None
        return self.grad_rms * self.numel**0.5 if self.grad_finite else float("nan")


@dataclass(frozen=True, kw_only=True, slots=True)
class ParameterReading:
    """What one trained parameter and its gradient were at one step, and what the step did to it.

    Shares and ratios are of a sample of the elements where there are many. None says that nobody could look: no
    gradient arrived, or the step has not been seen.

    Args:
        name: The parameter's dotted name, one of `Record.parameters`.
        numel: Elements.
        fan_in: Inputs that each unit sums up: the product of all dimensions of a weight but the first (for transposed
            convolutions but the second); 0 for parameters of fewer than two dimensions and for embeddings.
        dtype: Of the parameter, by torch's name.
        weight_rms: Root mean square of the parameter before the step.
        weight_mean: Its mean.
        grad_rms: Root mean square of the gradient, unscaled, before clipping.
        grad_absmax: Its largest finite magnitude.
        grad_zero_frac: Share of its elements that are exactly zero.
        grad_tiny_frac: Share of its elements that are not zero and below the smallest normal number of the gradient's
            dtype, in the scaling in which the backward has computed them.
        update_ratio: Norm of what the step changed, as difference of the weights after and before, over the norm of the
            weights before; None for weights of norm 0.
        still_frac: Share of the elements with a gradient that is not zero which the step left as they were to the bit.
        moved_ratio: Norm of the difference to the weights at the first sampled step over their norm then.
        row_spread: How much the rows of a weight (its units) differ: the norm of the difference to the mean row over
            the norm of the weight. 0 where all are the same, and where all are zero; None for fewer than two rows or
            two dimensions.
        grad_row_spread: The same of the gradient.
    """

    name: str
    numel: int = 0
    fan_in: int = 0
    dtype: str = "float32"
    weight_rms: float = 0.0
    weight_mean: float = 0.0
    grad_rms: float | None = None
    grad_absmax: float | None = None
    grad_zero_frac: float | None = None
    grad_tiny_frac: float | None = None
    update_ratio: float | None = None
    still_frac: float | None = None
    moved_ratio: float | None = None
    row_spread: float | None = None
    grad_row_spread: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorReading:
    """A tensor at an end of the model: an input, the output, the target.

    Args:
        name: `input`, `input.mask`, `output`, `target`.
        dtype: By torch's name; integers are ids or labels.
        shape: Its shape.
        mean: Mean over the finite elements; of all numbers here in float32 or wider.
        std: Standard deviation, over all elements.
        minimum: Smallest finite element.
        maximum: Largest finite element.
        finite_frac: Share of elements that are finite.
        features: How many features it has: channels of a picture, the last dimension of all else.
        constant_frac: Share of the features that are the same number in the whole batch (of two samples or more).
        feature_std_max: The largest standard deviation of a feature over the batch.
        feature_std_min: The smallest that is not zero.
        feature_mean_absmax: The largest magnitude of the mean of a feature.
    """

    name: str
    dtype: str = "float32"
    shape: tuple[int, ...] = ()
    mean: float = 0.0
    std: float = 0.0
    minimum: float = 0.0
    maximum: float = 0.0
    finite_frac: float = 1.0
    features: int = 0
    constant_frac: float = 0.0
    feature_std_max: float = 0.0
    feature_std_min: float = 0.0
    feature_mean_absmax: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Ends:
    """What went into the model and what became of its output, up to the loss.

    Args:
        inputs: The tensors that the model was called with.
        output: The first floating-point tensor that it returned.
        target: What the loss compared the output with, where it is known: from the batch, or from the graph of a loss
            of torch.
        loss_ops: The operations of the graph from the loss back to where the model's last layer with weights ends, the
            loss's own first, as torch names them without `Backward0`: `("NllLoss", "LogSoftmax", "Softmax")`. Shape
            operations (view, transpose, squeeze, ...) are left out. Empty where the graph was not seen.
        cuts: Operations on that way, or places in the model, at which the graph ends although weights lie behind.
        softmax_size: Over how many numbers the softmax nearest to the loss goes; None without one.
        compared_shape: The shape in which the loss holds the output against something without a gradient, after both
            have been broadcast to it. Known, with or without the target, where a subtraction or a loss of torch that
            holds one is the first thing that is done with the output; None otherwise.
        constant_loss: The loss of the best constant prediction on this batch, for losses whose form is known (cross
            entropy, squared and absolute error, binary cross entropy); None otherwise.
        signal: The score test of the constant model along the model's own output, for the same losses: the mean, over
            samples, of the output at the true class, or of output times target, both centred over the batch. Its
            expectation is 0 where the output carries nothing of the target. None where it is not known, and for fewer
            than eight samples.
        signal_error: Its standard error, over all orders in which the targets could have come.
        wrong_backward: Autograd functions of the user's own whose backward is not the slope of their forward: the
            function, a parameter whose gradient comes out wrong (empty where that is not known), and its gradient over
            what it should be. Looked for in checkups only.
    """

    inputs: tuple[TensorReading, ...] = ()
    output: TensorReading | None = None
    target: TensorReading | None = None
    loss_ops: tuple[str, ...] = ()
    cuts: tuple[str, ...] = ()
    softmax_size: int | None = None
    compared_shape: tuple[int, ...] | None = None
    constant_loss: float | None = None
    signal: float | None = None
    signal_error: float | None = None
    wrong_backward: tuple[tuple[str, str, float], ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """The numbers measured at one optimizer step.

    Args:
        step: The optimizer step, from 0.
        loss: The loss before the step; None when nobody handed it over.
        lrs: The learning rate of each parameter group.
        grad_norms: The gradient norm of each parameter, unclipped and unscaled, in the order of `Record.parameters`;
            0 where a parameter has no gradient; empty when not measured.
        total_norm: The norm of all gradients together.
        scale: The factor that the policy let through, 1 when nothing was clipped; the smallest of a per-tensor policy.
        skipped: Whether the step was left out.
        layers: Per-layer statistics, in the order of the forward pass; empty on steps that were not sampled.
        weights: Per-parameter statistics, in the order of `Record.parameters`; empty on steps that were not sampled.
        ends: Input, output, target and loss; None on steps that were not sampled.
        leftover: Whether the gradient of the step before was still there and was added to, as where `zero_grad` has
            been forgotten; None where nobody looked.
    """

    step: int = 0
    loss: float | None = None
    lrs: tuple[float, ...] = ()
    grad_norms: tuple[float, ...] = ()
    total_norm: float | None = None
    scale: float = 1.0
    skipped: bool = False
    layers: tuple[LayerReading, ...] = ()
    weights: tuple[ParameterReading, ...] = ()
    ends: Ends | None = None
    leftover: bool | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    """What is known of a training before its first step.

    Args:
        optimizer: The optimizer's class name; several joined by ` + `. Empty when there is none, as in a checkup.
        eps: The epsilon that is added to the root of the second moment; None for optimizers without one.
        weight_decay: The largest of the parameter groups.
        momentum: The largest of the parameter groups; of the first moment for optimizers of Adam's kind.
        numels: Elements of each parameter, in the order of `Record.parameters`.
        left_out: Parameters of the model that require a gradient and are in no optimizer.
        frozen: Parameters of the model that require none.
        unregistered: Modules or parameters that the model keeps where torch does not see them, such as in a plain
            list: `blocks[0]`.
        untrained: Weights among `left_out`, `frozen` and those inside of `unregistered` that look as an initialisation
            draws them, by their names (`blocks[0].weight`). In a run only those count that nothing has moved, and that
            get a gradient if they ask for one; so there it is empty until enough steps have shown it.
        sources: Where the code of a module's forward is: pairs of the module's name and `file.py:12 in Net.forward`;
            only for classes that are not torch's own.
    """

    optimizer: str = ""
    eps: float | None = None
    weight_decay: float = 0.0
    momentum: float = 0.0
    numels: tuple[int, ...] = ()
    left_out: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()
    unregistered: tuple[str, ...] = ()
    untrained: tuple[str, ...] = ()
    sources: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """All readings of a run or a checkup, and what is needed to judge them.

    Args:
        readings: In the order of their steps.
        parameters: Names of the parameters, in the order of `Reading.grad_norms`.
        dtype: The gradients' dtype by torch's name, for its resolution: `float32`, `bfloat16`, `float16`, `float64`.
        source: Where this comes from, for people: a run directory or a task.
        complete: Whether the run ended by itself and all of its log could be read.
        note: What is missing, in words, when it is not complete.
        setup: What is known of the training before its first step; None in logs that do not say.
    """

    readings: tuple[Reading, ...] = ()
    parameters: tuple[str, ...] = ()
    dtype: str = "float32"
    source: str = ""
    complete: bool = True
    note: str = ""
    setup: Setup | None = None


def without_last_look(readings: Sequence[Reading]) -> Sequence[Reading]:
    """Leave out a look at the model after the last step, so that what is left can be counted as optimizer steps.

    A look has gradients and layers as a step has, but no learning rate, and no weight has moved. Where no reading says
    anything of its step, all of them count.

    Args:
        readings: In the order of their steps.

    Example:
        >>> [one.step for one in without_last_look([Reading(step=0, lrs=(0.1,)), Reading(step=1)])]
        [0]
        >>> [one.step for one in without_last_look([Reading(step=0), Reading(step=1)])]
        [0, 1]
    """
    if not readings or _was_made(readings[-1]) or not any(map(_was_made, readings[:-1])):
        return readings
    return readings[:-1]


def _was_made(reading: Reading) -> bool:
    return bool(reading.lrs) or reading.skipped or any(one.update_ratio is not None for one in reading.weights)
