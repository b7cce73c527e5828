"""ByValue, Inhibit, Sign and AddNoise against torch's own, optax and their formulas."""

import jax
import numpy as np
import optax
import pytest
import torch
from torch import nn

from evengrad.clip.transforms import AddNoise, ByValue, Inhibit, Sign, SpikeAware
from evengrad.clip.transforms._generator import Draws


def filled(shape, seed=0, dtype=torch.float32, scale=1.0):
    grad = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale
    return grad.to(dtype)


class Bag(nn.Module):
    """Parameters of some shapes, with gradients."""

    def __init__(self, *grads):
        super().__init__()
        self.all = nn.ParameterList(nn.Parameter(torch.zeros_like(grad)) for grad in grads)
        for parameter, grad in zip(self.all, grads, strict=True):
            parameter.grad = grad.clone()

    @property
    def grads(self):
        return [parameter.grad for parameter in self.all]


def changed(transform, targets_of, *grads, memory=None):
    bag = Bag(*grads)
    targets = targets_of(bag, torch.optim.SGD(bag.parameters(), lr=1.0))
    with torch.no_grad():
        memory = transform.before_(targets, transform.init(targets) if memory is None else memory)
    return bag.grads, memory


@pytest.mark.parametrize("max_value", [1e-30, 0.01, 0.7, 3.0, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_by_value_equals_clip_grad_value_to_the_bit(max_value, dtype, targets_of):
    grads = [
        filled((7, 5), 1, dtype),
        filled((3,), 2, dtype, 100.0),
        filled((), 3, dtype),
        -torch.zeros(2, dtype=dtype),
    ]
    bag = Bag(*grads)
    if max_value < torch.finfo(dtype).max:  # torch raises otherwise
        torch.nn.utils.clip_grad_value_(bag.parameters(), max_value)
    ours, _ = changed(ByValue(max_value), targets_of, *grads)
    for one, other in zip(ours, bag.grads, strict=True):
        assert one.reshape(-1).view(torch.uint8).tolist() == other.reshape(-1).view(torch.uint8).tolist()


def test_on_an_accelerator_clip_grad_value_gets_what_it_takes_and_no_more(monkeypatch, targets_of):
    given = []
    monkeypatch.setattr(torch.nn.utils, "clip_grad_value_", lambda parameters, value: given.append((parameters, value)))
    dtypes = (torch.float32, torch.complex64, torch.bfloat16, torch.float16)
    bag = Bag(*(torch.empty(3, dtype=dtype, device="meta") for dtype in dtypes))
    ByValue(1e5).before_(targets_of(bag, torch.optim.SGD(bag.parameters(), lr=1.0)), {})
    ((parameters, value),) = given
    assert [parameter.dtype for parameter in parameters] == [torch.float32, torch.bfloat16]
    assert value == 1e5


def test_by_value_equals_optax_clip(targets_of):
    grads = [filled((7, 5), 1), filled((3,), 2)]
    wanted, _ = optax.clip(0.5).update([grad.numpy() for grad in grads], optax.EmptyState())
    for one, other in zip(changed(ByValue(0.5), targets_of, *grads)[0], wanted, strict=True):
        np.testing.assert_array_equal(one.numpy(), other)


def test_by_value_decides_what_is_not_finite(targets_of):
    (grad,), _ = changed(ByValue(2.0), targets_of, torch.tensor([float("inf"), -float("inf"), float("nan")]))
    assert grad.tolist()[:2] == [2.0, -2.0]
    assert grad[2].isnan()


@pytest.mark.parametrize("limit", [0.03, 1.0, 20.0])
@pytest.mark.parametrize(
    ("curve", "formula"),
    [("tanh", lambda g, c: c * np.tanh(g / c)), ("softsign", lambda g, c: g / (1 + np.abs(g) / c))],
)
def test_inhibit_is_its_formula_in_float64(limit, curve, formula, targets_of):
    grads = [filled((7, 5), 1), filled((30,), 2, scale=1000.0), filled((30,), 3, scale=1e-20), torch.zeros(2)]
    ours, _ = changed(Inhibit(limit, curve=curve), targets_of, *grads)
    for one, grad in zip(ours, grads, strict=True):
        np.testing.assert_allclose(one.numpy(), formula(grad.double().numpy(), limit), rtol=1e-6, atol=0)
        assert float(one.abs().max()) <= limit * (1 + 1e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("curve", ["tanh", "softsign"])
def test_inhibit_in_half_precision_rounds_once(curve, dtype, targets_of):
    grad = filled((500,), 1, dtype)
    (half,), _ = changed(Inhibit(0.3, curve=curve), targets_of, grad)
    (single,), _ = changed(Inhibit(0.3, curve=curve), targets_of, grad.float())
    assert torch.equal(half, single.to(dtype))


def test_inhibit_decides_what_is_not_finite(targets_of):
    bad = torch.tensor([float("inf"), -float("inf"), float("nan")])
    (tanh,), _ = changed(Inhibit(2.0), targets_of, bad)
    (softsign,), _ = changed(Inhibit(2.0, curve="softsign"), targets_of, bad)
    assert tanh.tolist()[:2] == [2.0, -2.0]
    assert tanh[2].isnan()
    assert bool(softsign.isnan().all())


def test_complex_parts_are_changed_each_for_itself(targets_of):
    grad = torch.complex(filled((4, 3), 1), filled((4, 3), 2))
    for transform in (ByValue(0.5), Inhibit(0.5), Inhibit(0.5, curve="softsign"), Sign()):
        (whole,), _ = changed(transform, targets_of, grad)
        (real, imag), _ = changed(transform, targets_of, grad.real.contiguous(), grad.imag.contiguous())
        assert torch.equal(whole, torch.complex(real, imag))


def test_a_lazily_conjugated_gradient_is_changed(targets_of):
    grad = torch.complex(filled((4,), 1), filled((4,), 2))
    bag = Bag(grad)
    bag.all[0].grad = grad.conj()
    targets = targets_of(bag, torch.optim.SGD(bag.parameters(), lr=1.0))
    Sign().before_(targets, {})
    assert torch.equal(bag.all[0].grad, torch.complex(grad.real.sign(), -grad.imag.sign()))


def test_sign_equals_optax(targets_of):
    grads = [filled((7, 5), 1), torch.tensor([0.0, -0.0, 1e-30, -1e30])]
    wanted, _ = optax.scale_by_sign().update([grad.numpy() for grad in grads], optax.EmptyState())
    ours, _ = changed(Sign(), targets_of, *grads)
    for one, other in zip(ours, wanted, strict=True):
        np.testing.assert_array_equal(one.numpy(), np.asarray(other))


@pytest.mark.parametrize("eta", [0.01, 1.0])
@pytest.mark.parametrize("gamma", [0.0, 0.55])
def test_noise_has_the_published_variance_at_every_step(eta, gamma, targets_of):
    count = 40_000
    memory = None
    for step in range(3):
        (noise,), memory = changed(AddNoise(eta=eta, gamma=gamma), targets_of, torch.zeros(count), memory=memory)
        wanted = (eta / (1 + step) ** gamma) ** 0.5
        assert float(noise.std()) == pytest.approx(wanted, rel=4 / (2 * count) ** 0.5)
        assert abs(float(noise.mean())) < 4 * wanted / count**0.5


def test_noise_has_the_variance_of_optax(targets_of):
    count, memory = 40_000, None
    chain = optax.add_noise(0.3, 0.7, key=jax.random.key(0))
    state = chain.init(np.zeros(1, np.float32))
    for _ in range(4):
        theirs, state = chain.update(np.zeros(count, np.float32), state)
        (ours,), memory = changed(AddNoise(eta=0.3, gamma=0.7), targets_of, torch.zeros(count), memory=memory)
        assert float(ours.std()) == pytest.approx(float(np.std(theirs)), rel=0.03)


def test_noise_differs_between_steps_parameters_and_seeds_and_is_the_same_again(targets_of):
    zeros = torch.zeros(50)
    noise = AddNoise()
    (one, two), memory = changed(noise, targets_of, zeros, zeros)
    (later, _), _ = changed(noise, targets_of, zeros, zeros, memory=memory)
    (other, _), _ = changed(AddNoise(seed=1), targets_of, zeros, zeros)
    (again, _), _ = changed(noise, targets_of, zeros, zeros)
    assert torch.equal(one, again)
    for different in (two, later, other):
        assert int((one == different).sum()) == 0


def test_two_transforms_of_one_seed_draw_different_numbers():
    like = torch.zeros(50)
    one, other = (Draws(who, 0, 0).uniform(like) for who in ("AddNoise", "Quantize"))
    assert int((one == other).sum()) == 0
    assert torch.equal(one, Draws("AddNoise", 0, 0).uniform(like))


def test_noise_is_added_to_the_gradient_and_counts_on_from_memory(targets_of):
    grad = filled((6,), 3)
    (noise,), memory = changed(AddNoise(), targets_of, torch.zeros(6))
    (noisy,), _ = changed(AddNoise(), targets_of, grad)
    torch.testing.assert_close(noisy, grad + noise, rtol=0, atol=1e-7)
    assert memory["steps"].tolist() == [1]


def test_complex_noise_has_two_parts_of_their_own(targets_of):
    (noise,), _ = changed(AddNoise(eta=1.0), targets_of, torch.zeros(20_000, dtype=torch.complex64))
    assert float(noise.real.std()) == pytest.approx(1.0, rel=0.03)
    assert float(noise.imag.std()) == pytest.approx(1.0, rel=0.03)
    assert abs(float((noise.real * noise.imag).mean())) < 0.03


def test_a_layout_that_is_neither_strided_nor_coo_is_refused(targets_of):
    with pytest.warns(UserWarning, match="Sparse CSR"):
        rows = torch.eye(2).to_sparse_csr()
    bag = nn.ParameterDict({"a": nn.Parameter(rows)})
    bag["a"].grad = rows.clone()
    targets = targets_of(bag, torch.optim.AdamW(bag.parameters()))
    with pytest.raises(ValueError, match=r"a: got a gradient of layout torch.sparse_csr, want a strided or COO"):
        ByValue(1.0).before_(targets, {})
    with pytest.raises(ValueError, match=r"SpikeAware: got a sparse gradient of a, want dense"):
        SpikeAware().before_(targets, SpikeAware().init(targets))
