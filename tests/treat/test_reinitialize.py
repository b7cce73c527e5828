"""How weights are drawn: formulas, what follows, recurrent layers, data."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

from evengrad.nouns import TreatmentError
from evengrad.treat import Combined, Reinitialize, SwapActivation


def drawn(model, batch=None, **settings):
    return Reinitialize(**settings).treat(model, seed=3, batch_input=batch)


@pytest.mark.parametrize(
    ("activation", "variance"),
    [
        (nn.ReLU(), 2 / 400),
        (nn.GELU(), 2 / 400),
        (nn.LeakyReLU(0.5), 2 / (1 + 0.25) / 400),
        (nn.PReLU(init=0.25), 2 / (1 + 0.0625) / 400),
        (nn.Tanh(), (5 / 3) ** 2 * 2 / (400 + 200)),
        (nn.Sigmoid(), 4**2 * 2 / (400 + 200)),
        (nn.SELU(), 1 / 400),
        (nn.Identity(), 2 / (400 + 200)),
    ],
)
def test_the_variance_follows_from_the_activation(activation, variance):
    model = nn.Sequential(nn.Linear(400, 200), nn.Dropout(0.5), activation, nn.Linear(200, 300))
    first, last = (drawn(model).subject[index].weight for index in (0, 3))
    assert first.std().item() == pytest.approx(variance**0.5, rel=0.02)
    assert last.std().item() == pytest.approx((2 / 500) ** 0.5, rel=0.02)
    assert not drawn(model).subject[0].bias.any()


def test_a_convolution_counts_its_kernel_and_its_groups():
    model = nn.Sequential(nn.Conv2d(64, 128, 3, groups=4), nn.ReLU(), nn.Conv2d(128, 8, 1))
    assert drawn(model).subject[0].weight.std().item() == pytest.approx((2 / (16 * 9)) ** 0.5, rel=0.02)


def test_a_transposed_convolution_keeps_the_scale_that_a_relu_halves():
    model = nn.Sequential(nn.ConvTranspose2d(64, 96, 4, stride=2, groups=2), nn.ReLU(), nn.Conv2d(96, 1, 1))
    treated = drawn(model).subject
    output = treated[0](torch.randn(4, 64, 24, 24))[..., 4:-4, 4:-4]
    assert output.square().mean().item() == pytest.approx(2.0, rel=0.1)


@pytest.mark.parametrize("scheme", ["he", "xavier", "orthogonal"])
def test_one_gain_for_all_layers_overrides_what_follows(scheme):
    model = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256))
    treated = drawn(model, scheme=scheme, gain=0.5)
    for index in (0, 2):
        assert treated.subject[index].weight.std().item() == pytest.approx(0.5 / 16, rel=0.02)


def test_orthogonal_weights_are_orthogonal_to_rounding():
    model = nn.Sequential(nn.Linear(40, 24), nn.ReLU(), nn.Linear(24, 24))
    weight = drawn(model, scheme="orthogonal").subject[0].weight.double()
    torch.testing.assert_close(weight @ weight.T, 2 * torch.eye(24, dtype=torch.float64), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1), (nn.LSTMCell, 4), (nn.GRUCell, 3)])
def test_each_gate_of_a_recurrent_layer_is_orthogonal(kind, gates):
    treated = drawn(nn.Sequential(kind(6, 9))).subject[0]
    for name, value in treated.named_parameters():
        if name.startswith("weight_hh"):
            for gate in value.detach().chunk(gates):
                torch.testing.assert_close(gate @ gate.T, torch.eye(9), rtol=0, atol=1e-5)
        if name.startswith("bias"):
            opened = [0.0, 1.0, 0.0, 0.0][:gates] if gates > 1 and "ih" in name else [0.0] * gates
            assert [gate.unique().tolist() for gate in value.chunk(gates)] == [[number] for number in opened]


def test_the_forget_gate_of_an_lstm_is_open_at_the_start():
    layer = drawn(nn.Sequential(nn.LSTM(4, 5, num_layers=2, bidirectional=True, proj_size=3))).subject[0]
    forget = [name for name, value in layer.named_parameters() if name.startswith("bias") and value[5:10].eq(1).all()]
    assert forget == ["bias_ih_l0", "bias_ih_l0_reverse", "bias_ih_l1", "bias_ih_l1_reverse"]


def test_a_relu_recurrent_layer_starts_as_the_identity():
    layer = drawn(nn.Sequential(nn.RNN(4, 6, nonlinearity="relu"))).subject[0]
    assert torch.equal(layer.weight_hh_l0, torch.eye(6))


def test_the_input_weights_of_each_gate_have_xaviers_variance():
    layer = drawn(nn.Sequential(nn.GRU(100, 300))).subject[0]
    for gate in layer.weight_ih_l0.chunk(3):
        assert gate.std().item() == pytest.approx((2 / 400) ** 0.5, rel=0.02)


def test_a_functional_relu_is_seen_with_a_batch_and_tanh_is_not(models):
    model = models["functional"]()
    with_batch = drawn(model, torch.randn(16, 6)).changes
    assert any(change.startswith("first: ") and "relu that follows" in change for change in with_batch)
    assert any(change.startswith("middle: ") and "cannot be seen" in change for change in with_batch)
    assert any(change.startswith("first, middle: ") and "cannot be seen" in change for change in drawn(model).changes)


def test_the_order_of_use_counts_and_not_the_order_of_registration():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.last, self.act, self.first = nn.Linear(8, 2), nn.Tanh(), nn.Linear(4, 8)

        def forward(self, x):
            return self.last(self.act(self.first(x)))

    changes = drawn(Backwards(), torch.randn(3, 4)).changes
    assert any(change.startswith("first: ") and "for the tanh" in change for change in changes)
    assert any(change.startswith("last: ") and "gain 1;" in change for change in changes)


def test_the_feedforward_relu_of_a_transformer_layer_is_seen(models):
    changes = drawn(models["transformer"](), torch.randn(4, 3, 5)).changes
    assert any(change.startswith("1.linear1: ") and "relu that follows" in change for change in changes)
    assert any("1.self_attn: projections" in change for change in changes)


def test_embeddings_and_what_is_tied_to_them_stay(models):
    model = models["tied"]()
    treated = drawn(model, torch.arange(4))
    assert torch.equal(treated.subject.head.weight, model.embedding.weight)
    assert treated.subject.head.weight is treated.subject.embedding.weight
    assert "head: left as they are" in treated.changes


def test_tied_dense_layers_are_drawn_once_and_stay_tied():
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
    model[2].weight = model[0].weight
    treated = drawn(model)
    assert treated.subject[2].weight is treated.subject[0].weight
    assert [change[:2] for change in treated.changes] == ["0:"]


def test_parametrized_weights_stay_and_the_changes_say_so(models):
    model = models["parametrized"]()
    treated = drawn(model)
    assert torch.equal(treated.subject[2].weight, model[2].weight)
    assert "2: left as they are" in treated.changes


def test_bfloat16_weights_are_the_rounded_float32_draw():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    exact = drawn(model).subject[0].weight
    assert torch.equal(drawn(model.bfloat16()).subject[0].weight, exact.bfloat16())


def test_pasted_code_draws_with_the_same_scale():
    model = nn.Sequential(
        nn.Linear(300, 400), nn.ReLU(), nn.Linear(400, 300), nn.LeakyReLU(0.3), nn.Linear(300, 300), nn.Sigmoid(),
        nn.Linear(300, 200), nn.SELU(), nn.Unflatten(1, (200, 1, 1)), nn.ConvTranspose2d(200, 100, 4, 2), nn.ReLU(),
        nn.Flatten(1, 3), nn.Linear(1600, 100),
    )  # fmt: skip
    for settings in ({}, {"scheme": "he"}, {"scheme": "orthogonal"}, {"data_driven": True}):
        treated = drawn(model, torch.randn(64, 300), **settings)
        exec(treated.code, {"torch": torch, "nn": nn, "model": model})
        for one, two in zip(model.parameters(), treated.subject.parameters(), strict=True):
            assert one.std().item() == pytest.approx(two.std().item(), rel=0.04, abs=1e-9)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
def test_data_driven_outputs_have_unit_deviation_at_every_layer(make_deep, activation):
    model, batch = make_deep(activation, 14, 32, 10), torch.randn(64, 10) * 50
    treated = drawn(model, batch, data_driven=True).subject
    for index, layer in enumerate(treated):
        batch = layer(batch)
        if isinstance(layer, nn.Linear):
            assert batch.std().item() == pytest.approx(1.0, abs=0.02), index


def test_data_driven_scaling_leaves_a_constant_output_and_says_so():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    treated = drawn(model, torch.zeros(8, 4), data_driven=True)
    assert any(change.startswith("0, 2: orthogonal weights, not scaled") for change in treated.changes)
    assert all(torch.isfinite(value).all() for value in treated.subject.parameters())


def test_data_driven_without_data_is_refused():
    with pytest.raises(TreatmentError, match="batch_input"):
        drawn(nn.Sequential(nn.Linear(2, 2)), data_driven=True)


def test_twenty_relu_layers_of_far_too_large_weights_give_outputs_of_order_one(make_deep):
    model = make_deep(nn.ReLU, 20, 64, 64)
    for layer in model[::2]:
        nn.init.normal_(layer.weight, std=0.4)
    batch = torch.randn(128, 64)
    sizes = [net[:-1](batch).square().mean().sqrt().item() for net in (model, drawn(model).subject)]
    assert sizes[0] > 1e6
    assert 0.1 < sizes[1] < 10.0


def decades_lost(model, batch):
    model.zero_grad()
    mse_loss(model(batch), batch[:, :1] * batch[:, 1:]).backward()
    weights = [value for value in model.parameters() if value.dim() > 1]
    return math.log10(weights[-1].grad.norm() / weights[0].grad.norm())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_twelve_narrow_sigmoid_layers_get_their_gradient_back(make_deep, seed):
    model = make_deep(nn.Sigmoid, 12, 5)
    for layer in model[::2]:
        nn.init.kaiming_uniform_(layer.weight)
    batch = torch.randn(128, 2)
    cure = Combined((SwapActivation(to="tanh"), Reinitialize()))
    treated = cure.treat(model, seed=seed).subject
    assert decades_lost(model, batch) > 5
    assert decades_lost(model, batch) - decades_lost(treated, batch) > 3
    assert abs(decades_lost(treated, batch)) < 1.5


def test_a_gain_of_four_brings_more_gradient_through_sigmoids_than_a_gain_of_one(make_deep):
    model, batch = make_deep(nn.Sigmoid, 12, 5), torch.randn(128, 2)
    lost = [
        sorted(decades_lost(Reinitialize(**how).treat(model, seed=seed).subject, batch) for seed in range(5))[2]
        for how in ({"scheme": "xavier", "gain": 1.0}, {})
    ]
    assert lost[0] - lost[1] > 2


def test_a_functional_relu_in_place_is_seen_too(models):
    class InPlace(type(models["functional"]())):
        def forward(self, x):
            return self.last(self.middle(self.first(x).relu_()))

    changes = drawn(InPlace(), torch.randn(16, 6)).changes
    assert any(change.startswith("first: ") and "relu that follows" in change for change in changes)
    assert any(change.startswith("middle, last: ") and "gain 1;" in change for change in changes)


def test_data_driven_scaling_sees_batch_norms_as_training_does():
    model = nn.Sequential(nn.Linear(4, 64), nn.BatchNorm1d(64), nn.Linear(64, 3), nn.ReLU(), nn.Linear(3, 1))
    batch = torch.randn(256, 4) + 5.0  # a mean that batch norm takes away
    treated = drawn(model, batch, data_driven=True).subject
    assert treated[1].num_batches_tracked == 0
    assert treated.train()[:3](batch).std().item() == pytest.approx(1.0, abs=0.02)


def test_the_output_projection_of_attention_counts_as_linear(models):
    changes = drawn(models["transformer"](), torch.randn(4, 3, 5)).changes
    words = next(change for change in changes if "1.self_attn.out_proj" in change)
    assert "Xavier normal with gain 1;" in words
