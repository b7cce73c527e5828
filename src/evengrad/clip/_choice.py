"""Every policy, and the one that a `clip=` argument means."""

from evengrad.clip._by_block_rms import ByBlockRms
from evengrad.clip._by_global_norm import ByGlobalNorm
from evengrad.clip._by_moving_average import ByMovingAverage
from evengrad.clip._by_percentile import ByPercentile
from evengrad.clip._by_polyak_step import ByPolyakStep
from evengrad.clip._by_sigma_window import BySigmaWindow
from evengrad.clip._by_smooth_norm import BySmoothNorm
from evengrad.clip._by_tensor_norm import ByTensorNorm
from evengrad.clip._by_weight_norm import ByWeightNorm
from evengrad.clip._by_zscore import ByZScore
from evengrad.clip._chain import Chain
from evengrad.clip._normalized_gradient import NormalizedGradient
from evengrad.clip._policy import AbstractPolicy
from evengrad.clip._skip_non_finite import SkipNonFinite
from evengrad.clip._zclip import ZClip
from evengrad.nouns import SettingError

ALL: tuple[type[AbstractPolicy], ...] = (
    ByBlockRms,
    ByGlobalNorm,
    ByMovingAverage,
    ByPercentile,
    ByPolyakStep,
    BySigmaWindow,
    BySmoothNorm,
    ByTensorNorm,
    ByWeightNorm,
    ByZScore,
    Chain,
    NormalizedGradient,
    SkipNonFinite,
    ZClip,
)


ADAPTIVE = "adaptive"  # what a treatment says, which knows no policies


def policy_of(clip: object) -> AbstractPolicy:
    """Return the policy that a `clip=` argument means.

    Args:
        clip: A policy, a number (the threshold of `ByGlobalNorm`), or None or `adaptive` for the default `ByZScore()`.

    Raises:
        SettingError: It is none of these.

    Example:
        >>> policy_of(1.0)
        ByGlobalNorm(max_norm=1.0, norm_type=2.0)
    """
    if clip is None or clip == ADAPTIVE:
        return ByZScore()
    if isinstance(clip, AbstractPolicy):
        return clip
    if isinstance(clip, int | float) and not isinstance(clip, bool):
        return ByGlobalNorm(float(clip))
    names = ", ".join(policy.__name__ for policy in ALL)
    raise SettingError("clip", came=repr(clip), wanted=f"a policy ({names}), a positive number, 'adaptive' or None")
