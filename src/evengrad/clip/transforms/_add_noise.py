"""Add decaying Gaussian noise to the gradients."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

from evengrad.clip._settings import not_negative, positive, whole
from evengrad.clip.transforms._generator import Draws, first, next_, steps
from evengrad.clip.transforms._gradients import refuse_sparse, values_
from evengrad.clip.transforms._transform import AbstractTransform, Memory, Target


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class AddNoise(AbstractTransform):
    """Add noise from N(0, eta / t^gamma) to every element at the t-th step, t from 1.

    The noise comes from a generator of its own, made anew for each step from seed and step: the global random state is
    not touched, a run that goes on from a checkpoint sees the same noise, and so do replicas, which stay equal. On
    another kind of device the noise differs. A parameter without a gradient gets none, and then the noise of those
    behind it is another. A skipped step does not count. Real and imaginary parts get noise of that variance each. Half
    precision is added in float32.

    Args:
        eta: Variance at the first step, positive. The paper chooses among 0.01, 0.3 and 1.0.
        gamma: How fast it decays, at least 0. 0.55 is the paper's choice.
        seed: A whole number from 0.

    Raises:
        SettingError: A setting is out of range. While training: a sparse gradient, which would be filled.

    Cost: As many random numbers as elements; a copy of one gradient at a time; the count is in host memory.

    Example:
        >>> import torch
        >>> parameter = torch.nn.Parameter(torch.zeros(2000))
        >>> parameter.grad = torch.zeros(2000)
        >>> optimizer = torch.optim.SGD([parameter])
        >>> target = Target(name="a", parameter=parameter, module=None, last=False, optimizer=optimizer,
        ...                 group=optimizer.param_groups[0])
        >>> noise = AddNoise(eta=0.25)
        >>> memory = noise.before_([target], noise.init([target]))
        >>> round(float(parameter.grad.std()), 1)
        0.5

    Source: Neelakantan et al., 2015, Adding Gradient Noise Improves Learning for Very Deep Networks, arXiv:1511.06807,
    equation 1, which counts steps from 0 in 1 + t.
    """

    eta: float = 0.01
    gamma: float = 0.55
    seed: int = 0

    needs_host: ClassVar[bool] = True

    def __post_init__(self) -> None:
        positive("eta", self.eta)
        not_negative("gamma", self.gamma)
        whole("seed", self.seed, least=0, most=2**63)

    def init(self, targets: Sequence[Target]) -> Memory:
        """Remember how many steps went by."""
        return first()

    def before_(self, targets: Sequence[Target], memory: Memory) -> Memory:
        """Add the noise."""
        refuse_sparse(self, targets)
        step = steps(memory)
        draws = Draws(type(self).__name__, self.seed, step)
        std = (self.eta / (step + 1) ** self.gamma) ** 0.5
        for target in targets:
            grad = values_(target)
            if grad is not None:
                grad.add_(draws.normal(grad), alpha=std)
        return next_(memory)

    def after_(self, targets: Sequence[Target], memory: Memory) -> Memory:
        """Leave the weights alone."""
        return memory
