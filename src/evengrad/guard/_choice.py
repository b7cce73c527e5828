"""Which way to apply decisions suits the device and the optimizers."""

from collections.abc import Sequence

from torch.optim import Optimizer

from evengrad.clip.transforms import AbstractTransform
from evengrad.guard._apply import AbstractApply
from evengrad.guard._attributes import can_fold
from evengrad.guard._on_device import OnDevice
from evengrad.guard._on_host import OnHost
from evengrad.guard._program import Part
from evengrad.guard._watching import Watching
from evengrad.nouns import OptimizerError, SettingError

WAYS = ("conditional", "foreach", "folded")


def watching(apply: object, optimizers: Sequence[Optimizer], *, rollback: bool) -> AbstractApply:
    """Return the way of a guard that only watches.

    Raises:
        SettingError: A way to apply decisions is asked for, or a rollback: there are none.
    """
    for name, given in (("apply", apply), ("rollback", rollback or None)):
        if given is not None:
            raise SettingError(name, came=repr(given), wanted="None with clip=False: nothing is ever changed")
    devices = {p.device.type for one in optimizers for group in one.param_groups for p in group["params"]}
    return Watching(on_device="cuda" in devices)


def apply_of(apply: object, optimizers: Sequence[Optimizer], parts: Sequence[Part], *, rollback: bool) -> AbstractApply:
    """Return what an `apply=` argument means; None chooses.

    On a CPU the host decides: reading is free there, and nothing is written where nothing is clipped. On a CUDA device
    the decision is folded where every optimizer is fused; else the host decides, and waits.

    Raises:
        OptimizerError: Folding is asked for and an optimizer cannot.
        SettingError: It is none of the ways, or a transform needs the host.
    """
    needy = [type(part).__name__ for part in parts if isinstance(part, AbstractTransform) and part.needs_host]
    needy += ["a rollback"] if rollback else []  # it has to happen at the same step in every process
    unable = [optimizer for optimizer in optimizers if not can_fold(optimizer)]
    if apply is None:
        devices = {p.device.type for one in optimizers for group in one.param_groups for p in group["params"]}
        if devices == {"cuda"} and not unable and not needy:
            return OnDevice(fold=True)
        return OnHost(fold=devices == {"cpu"} and not unable)
    if apply not in WAYS:
        raise SettingError("apply", came=repr(apply), wanted=f"None or one of {', '.join(map(repr, WAYS))}")
    if apply == "conditional":
        return OnHost(fold=False)
    if needy:
        advice = "it must know of each step whether it is skipped"
        raise SettingError("apply", came=f"{apply!r} with {needy[0]}", wanted="None or 'conditional'", advice=advice)
    if apply == "folded" and unable:
        raise OptimizerError(
            "optimizer",
            came=f"{type(unable[0]).__name__} without a fused kernel that takes a scale",
            wanted="torch's Adam, AdamW, SGD or Adagrad with fused=True for apply='folded'",
        )
    return OnDevice(fold=apply == "folded")
