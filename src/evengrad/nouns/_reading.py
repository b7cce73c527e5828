"""Readings: the numbers measured at one step, and the record that holds those of a run."""

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

    @property
    def grad_norm(self) -> float | None:
        """Norm of the gradient at the output over all its elements: unlike the rms it compares across layer sizes.

        None when no gradient arrived, NaN when one arrived that is not finite.
        """
        if self.grad_rms is None:
            return None
        return self.grad_rms * self.numel**0.5 if self.grad_finite else float("nan")


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
    """

    step: int = 0
    loss: float | None = None
    lrs: tuple[float, ...] = ()
    grad_norms: tuple[float, ...] = ()
    total_norm: float | None = None
    scale: float = 1.0
    skipped: bool = False
    layers: tuple[LayerReading, ...] = ()


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
    """

    readings: tuple[Reading, ...] = ()
    parameters: tuple[str, ...] = ()
    dtype: str = "float32"
    source: str = ""
    complete: bool = True
    note: str = ""
