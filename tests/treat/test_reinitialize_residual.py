"""Residual branches that start at zero: which are found, blocks that are the identity, gradients that come through."""

import pytest
import torch
from pasted_code import pasted
from torch import Tensor, nn
from torch.nn.functional import relu

from evengrad.nouns import TreatmentError
from evengrad.treat import Reinitialize, Residual


def drawn(model, batch=None, **settings):
    return Reinitialize(zero_residual=True, **settings).treat(model, seed=3, batch_input=batch)


def zeroed(model):
    return {
        name.removesuffix(".weight") for name, value in model.named_parameters() if "weight" in name and not value.any()
    }


class Basic(nn.Module):
    """The basic block of torchvision's ResNet."""

    def __init__(self, into: int, out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(into, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
        self.downsample = None
        if stride != 1 or into != out:
            self.downsample = nn.Sequential(nn.Conv2d(into, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.proj, self.drop = nn.Linear(width, 3 * width), nn.Linear(width, width), nn.Dropout(0.1)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        scores = (q @ k.transpose(-1, -2)) / q.shape[-1] ** 0.5
        if mask is not None:
            scores = scores + mask
        return self.drop(self.proj(scores.softmax(-1) @ v))


class Block(nn.Module):
    """A pre-norm transformer block written by hand."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln1, self.attn, self.ln2 = nn.LayerNorm(width), Attention(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 32), nn.GELU(), nn.Linear(32, width), nn.Dropout(0.1))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln1(x))
        return x + self.mlp(self.ln2(x))


class BertOutput(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense, self.LayerNorm, self.dropout = nn.Linear(16, width), nn.LayerNorm(width), nn.Dropout(0.1)

    def forward(self, hidden: Tensor, given: Tensor) -> Tensor:
        hidden = self.dropout(self.dense(hidden))
        return self.LayerNorm(hidden + given)


class Bert(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.intermediate, self.act, self.output = nn.Linear(width, 16), nn.GELU(), BertOutput(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.act(self.intermediate(x)), x)


class Scaled(nn.Module):
    """A branch behind a scale for each unit, and a forward that no tracer follows around it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(6), nn.Linear(6, 12), nn.Linear(12, 6)
        self.gamma = nn.Parameter(torch.ones(6))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gamma * self.down(torch.tanh(self.up(self.norm(x))))


class Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block, self.head = Scaled(), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(x) if x.sum() < 1e9 else x)


MODELS = {
    "resnet": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), Basic(8, 8), Basic(8, 16, 2), nn.Flatten(), nn.LazyLinear(2)),
        (4, 3, 10, 10), {"1.bn2", "2.bn2"},
    ),
    "transformer": (lambda: nn.Sequential(Block(8), Block(8), nn.Linear(8, 2)), (4, 5, 8),
        {"0.attn.proj", "0.mlp.2", "1.attn.proj", "1.mlp.2"}),
    "bert": (lambda: nn.Sequential(Bert(8), nn.Linear(8, 2)), (4, 8), {"0.output.dense"}),
    "untraceable": (Untraceable, (4, 6), {"block.down"}),
    "our own": (lambda: nn.Sequential(nn.Linear(6, 6), Residual(nn.Linear(6, 6), nn.Tanh()), nn.Linear(6, 1)), (4, 6),
        {"1.block.0"}),
    "our own with a norm": (
        lambda: nn.Sequential(Residual(nn.Linear(6, 6), nn.LayerNorm(6), nn.Tanh()), nn.Linear(6, 1)), (4, 6),
        {"0.block.1"}),
    "torch's encoder": (lambda: nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Linear(8, 2)),
        (4, 5, 8), {"0.self_attn.out_proj", "0.linear2"}),
    "torch's encoder, norm first": (lambda: nn.TransformerEncoder(
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True), 2, enable_nested_tensor=False),
        (4, 5, 8), {f"layers.{index}.{name}" for index in (0, 1) for name in ("self_attn.out_proj", "linear2")}),
}  # fmt: skip


@pytest.fixture(params=sorted(MODELS))
def case(request):
    make, shape, ends = MODELS[request.param]
    torch.manual_seed(5)
    model, batch = make(), torch.randn(shape)
    model.eval()(batch)  # lazy layers take their shape
    return model.train(), batch, ends


def test_the_ends_of_all_branches_are_found_and_nothing_else_is_zero(case):
    model, batch, ends = case
    treated = drawn(model, batch)
    for changed in (treated.subject, pasted(treated.code, model), drawn(model).subject):
        assert zeroed(changed) == ends
    assert "each residual branch starts as nothing" in treated.changes[-1]


def test_a_gradient_reaches_every_end_at_the_start(case):
    model, batch, ends = case
    changed = drawn(model, batch).subject
    (changed(batch) * torch.linspace(0.5, 2.0, changed(batch).numel()).view_as(changed(batch))).sum().backward()
    for end in ends:
        assert changed.get_parameter(f"{end}.weight").grad.abs().max() > 1e-6, end


@pytest.mark.parametrize("data_driven", [True, False])
def test_blocks_are_the_identity_at_the_start(data_driven):
    model, x = nn.Sequential(Block(8), Block(8), nn.Linear(8, 2)), torch.randn(4, 5, 8)
    changed = drawn(model, x, data_driven=data_driven).subject.eval()
    assert torch.equal(changed[:2](x), x)
    assert not torch.allclose(Reinitialize().treat(model).subject.eval()[:2](x), x)


def test_fifty_blocks_without_norms_keep_the_scale_that_they_would_have_doubled():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = nn.Linear(16, 16), nn.Linear(16, 16)

        def forward(self, x):
            return x + self.down(relu(self.up(x)))

    model, x = nn.Sequential(*(Plain() for _ in range(50)), nn.Linear(16, 1)), torch.randn(8, 16)
    without, with_zero = (
        Reinitialize(zero_residual=zero).treat(model, batch_input=x).subject for zero in (False, True)
    )
    assert without[:50](x).norm() > 1e3 * x.norm()
    assert torch.equal(with_zero[:50](x), x)


@pytest.mark.parametrize(
    ("branch", "why"),
    [
        (lambda: nn.Linear(4, 4), "no residual branch"),
        (lambda: Residual(nn.Linear(4, 4), nn.ReLU()), r"ends in 0\.block\.1 \(ReLU\)"),
        (lambda: Residual(nn.Linear(4, 4), nn.Sigmoid()), r"ends in 0\.block\.1 \(Sigmoid\)"),
        (lambda: Residual(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))), "parametrised"),
        (lambda: Residual(nn.Linear(4, 4), nn.LayerNorm(4, elementwise_affine=False)), "no weight"),
    ],
)
def test_a_model_without_a_branch_that_can_start_at_zero_is_refused(branch, why):
    model = nn.Sequential(branch(), nn.Linear(4, 2))
    with pytest.raises(TreatmentError, match=why):
        drawn(model, torch.randn(3, 4))


def test_branches_that_cannot_start_at_zero_are_named_beside_those_that_do():
    model = nn.Sequential(Residual(nn.Linear(4, 4), nn.ReLU()), Residual(nn.Linear(4, 4)), nn.Linear(4, 2))
    treated = drawn(model, torch.randn(3, 4))
    assert zeroed(treated.subject) == {"1.block.0"}
    assert treated.changes[-1] == "a branch that ends in 0.block.1 (ReLU): left as it is"


def test_a_weight_that_something_else_uses_is_not_zeroed():
    model = nn.Sequential(Residual(nn.Linear(4, 4)), Residual(nn.Linear(4, 4)), nn.Linear(4, 4))
    model[2].weight = model[0].block[0].weight
    treated = drawn(model, torch.randn(3, 4))
    assert zeroed(treated.subject) == {"1.block.0"}


def test_a_sum_of_two_things_that_do_not_come_from_each_other_is_no_branch():
    class Cell(nn.Module):
        def __init__(self):
            super().__init__()
            self.into, self.over, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x, state):
            return self.head(torch.tanh(self.into(x) + self.over(state)))

    with pytest.raises(TreatmentError, match="no residual branch"):
        drawn(Cell(), (torch.randn(3, 4), torch.randn(3, 4)))
