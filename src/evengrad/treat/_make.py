"""Every treatment, and making one from its name."""

from collections.abc import Iterable
from typing import Any

from evengrad.nouns import Setting, SettingError
from evengrad.treat._abstract import AbstractTreatment
from evengrad.treat._add_activation import AddActivation
from evengrad.treat._add_normalization import AddNormalization
from evengrad.treat._add_output_activation import AddOutputActivation
from evengrad.treat._add_residual import AddResidual
from evengrad.treat._clip_gradients import ClipGradients
from evengrad.treat._constrain_weights import ConstrainWeights
from evengrad.treat._keep_in_float32 import KeepInFloat32
from evengrad.treat._normalize_input import NormalizeInput
from evengrad.treat._normalize_target import NormalizeTarget
from evengrad.treat._reinitialize import Reinitialize
from evengrad.treat._remove_output_activation import RemoveOutputActivation
from evengrad.treat._scale_learning_rate import ScaleLearningRate
from evengrad.treat._scale_loss import ScaleLoss
from evengrad.treat._set_optimizer import SetOptimizer
from evengrad.treat._swap_activation import SwapActivation
from evengrad.treat._swap_optimizer import SwapOptimizer
from evengrad.treat._train_everything import TrainEverything
from evengrad.treat._truncate_backprop import TruncateBackprop
from evengrad.treat._use_gated_cell import UseGatedCell
from evengrad.treat._warm_up import WarmUp

ALL: tuple[type[AbstractTreatment], ...] = (
    ClipGradients,
    ScaleLearningRate,
    SetOptimizer,
    WarmUp,
    Reinitialize,
    RemoveOutputActivation,
    AddOutputActivation,
    NormalizeInput,
    NormalizeTarget,
    TrainEverything,
    ScaleLoss,
    KeepInFloat32,
    ConstrainWeights,
    TruncateBackprop,
    SwapOptimizer,
    SwapActivation,
    AddActivation,
    AddNormalization,
    UseGatedCell,
    AddResidual,
)


def make(name: str, settings: Iterable[tuple[str, Setting]] = ()) -> AbstractTreatment:
    """Make a treatment from its name and settings, as a cure of a finding has them.

    Args:
        name: The name of a member of `ALL`.
        settings: Names and values.

    Raises:
        SettingError: The name or a setting is unknown, or a value is of the wrong kind or out of range.

    Example:
        >>> make("ClipGradients", [("max_norm", 0.5)])
        ClipGradients(max_norm=0.5, policy=None)
    """
    kinds = {kind.__name__: kind for kind in ALL}
    if name not in kinds:
        raise SettingError("treatment", came=repr(name), wanted=f"one of {', '.join(kinds)}")
    chosen: dict[str, Any] = dict(settings)
    known = set(getattr(kinds[name], "__dataclass_fields__", ()))
    if unknown := sorted(set(chosen) - known):
        raise SettingError(
            f"{name}.{unknown[0]}", came="a setting that it does not have", wanted=", ".join(sorted(known)) or "none"
        )
    try:
        return kinds[name](**chosen)
    except TypeError as err:
        raise SettingError(name, came=repr(chosen), wanted="settings of the right kind") from err
