"""What protection does to the model around it: hooks, copies, logs, compiled models, settings."""

import copy
import logging
import pickle

import pytest
import torch
from protected_models import (
    INF,
    NAN,
    BadBackward,
    Convolutions,
    Function,
    Recurrent,
    Shared,
    encoder,
    hooks,
    sequential,
    train,
    train_protected,
)
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from evengrad.guard import Protection
from evengrad.nouns import ModelError, NonFiniteError, SettingError, UnguardedStepWarning


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


class Syncs(TorchDispatchMode):
    """Count the operations that read a tensor on the host."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in {
            torch.ops.aten._local_scalar_dense.default,
            torch.ops.aten.equal.default,
            torch.ops.aten.nonzero.default,
        }
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("make", [encoder, Convolutions, Shared, lambda: sequential(lambda x: x / 0)])
def test_clamping_never_waits_for_the_device(make):
    model, x = make(), torch.randn(5, 4)
    with Syncs() as without:
        model(x).sum().backward()
    with Protection(model, forward="clamp", backward="clamp", limit=1e6), Syncs() as syncs:
        model(x).sum().backward()
    assert syncs.count == without.count
    with Protection(model, forward=None), Syncs() as syncs:
        model(x).sum()
    assert syncs.count == without.count


def test_the_model_is_left_as_found_and_a_second_detach_does_nothing():
    model = encoder()
    before = hooks(model)
    protection = Protection(model)
    assert repr(protection) == "Protection(forward='stop', backward='stop'; 13 modules)"
    train(model, 1)
    protection.detach()
    protection.detach()
    assert hooks(model) == before
    assert repr(protection).endswith("detached)")
    with pytest.raises(ValueError, match="on purpose"), Protection(model):
        raise ValueError("on purpose")
    assert hooks(model) == before


def test_after_detaching_gradients_flow_back_untouched():
    model = sequential(BadBackward.apply)
    torch.nn.init.constant_(model[0].bias, 5.0)
    protection = Protection(model, forward="clamp")
    loss = model(torch.randn(2, 4)).sum()
    protection.detach()
    loss.backward()
    assert model[0].weight.grad.isnan().any()
    assert protection.events() == ()


def test_what_was_clamped_is_logged_once_for_each_module_and_direction(caplog):
    model = sequential(lambda x: x / 0)
    with caplog.at_level(logging.WARNING, "evengrad.guard"), Protection(model, forward="clamp") as protection:
        model(torch.randn(2, 4))
        assert caplog.messages == []
        protection.events()
        assert len(caplog.messages) == 1
        model(torch.randn(2, 4))
        protection.events()
    assert caplog.messages[0].startswith("activation of 2 (Function): ")
    assert len(caplog.messages) == 1
    with caplog.at_level(logging.WARNING, "evengrad.guard"), Protection(model, forward="clamp"):
        model(torch.randn(2, 4))
    assert len(caplog.messages) == 2


def test_what_has_raised_is_not_logged_as_well(caplog):
    with pytest.raises(NonFiniteError, match="activation of 2"):
        train_protected(sequential(lambda x: x / 0))
    assert caplog.messages == []


def test_what_happened_is_logged_also_when_an_error_ends_the_run(caplog):
    model = sequential(lambda x: x / 0)
    model.append(Function(lambda x: x.reshape(7, 7)))
    with pytest.raises(RuntimeError, match="shape"), Protection(model, forward="clamp"):
        model(torch.randn(2, 4))
    assert len(caplog.messages) == 1


def test_only_the_chosen_modules_and_all_inside_them_are_protected():
    model = nn.Sequential(sequential(lambda x: x / 0), sequential(lambda x: x / 0), nn.Linear(2, 2))
    model[1][0] = nn.Linear(2, 4)
    for chosen in (["1", "2"], [model[1], model[2]]):
        with Protection(model, forward="clamp", backward=None, modules=chosen) as protection:
            model(torch.ones(2, 4))
        assert {event.module for event in protection.events()} == {"1.0", "1.2"}


def test_two_protections_with_limits_of_their_own_work_together():
    model = sequential(lambda x: x * 0 + 50.0)
    ahead = Protection(model, forward="clamp", backward=None, limit=10.0)
    back = Protection(model, forward=None, backward="clamp", limit=0.5)
    (model(torch.ones(1, 4)) * 3).sum().backward()
    assert {event.direction for event in ahead.events()} == {"forward"}
    assert {(event.module, event.too_large) for event in back.events()} == {("3", 2)}
    assert torch.equal(model[3].bias.grad, torch.full((2,), 0.5))


def test_a_parametrized_weight_is_no_activation_and_a_returned_parameter_gets_no_hook():
    model = Recurrent()
    with Protection(model, forward="clamp", limit=1e-9) as protection:
        model(torch.randn(2, 4))
    assert not [event.module for event in protection.events() if "parametrizations" in event.module]
    weight = nn.Parameter(torch.ones(2))
    with Protection(module := Function(lambda: weight), forward=None):
        assert module() is weight
    assert not weight._backward_hooks


def test_a_second_derivative_passes_through():
    model, x = sequential(), torch.randn(2, 4, requires_grad=True)

    def penalty():
        (gradient,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), model[0].weight)[0]

    plain = penalty()
    with Protection(model, forward="clamp", backward="clamp"):
        assert torch.equal(penalty(), plain)


def test_copies_of_a_protected_model_are_not_protected_and_it_can_be_pickled():
    model = nn.Sequential(nn.Linear(2, 1))
    with Protection(model):
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert other(torch.full((1, 2), NAN)).isnan().all()
        with pytest.raises(NonFiniteError, match="activation of 0"):
            model(torch.full((1, 2), NAN))


def test_a_model_that_was_never_called_is_warned_of():
    protection = Protection(nn.Linear(1, 1))
    with pytest.warns(UnguardedStepWarning, match="compiled before has no hooks"):
        protection.detach()
    with pytest.warns(UnguardedStepWarning, match="no module of the model was called"), Protection(nn.Linear(1, 1)):
        pass


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # torch itself, at any graph break
def test_a_model_that_is_compiled_after_its_protection_is_protected():
    model = sequential(lambda x: x / x.detach().clamp_min(0))
    try:
        with Protection(model, forward="clamp") as protection:
            fast = torch.compile(model, backend="eager")
            for _ in range(3):
                assert fast(torch.zeros(2, 4)).isfinite().all()
            assert protection.events()[0].module == "2"
            assert protection.events()[0].calls == 3
    finally:
        torch.compiler.reset()


def test_a_compiled_model_is_refused_and_one_compiled_before_is_warned_of():
    model = nn.Sequential(nn.Linear(4, 2))
    fast = torch.compile(model, backend="eager")
    x = torch.full((2, 4), NAN)
    try:
        fast(x)
        with pytest.raises(ModelError, match=r"got a compiled one, .* compile after Protection\(model\)"):
            Protection(fast)
        with pytest.warns(UnguardedStepWarning, match="compiled before has no hooks"), Protection(model):
            fast(x)
    finally:
        torch.compiler.reset()
    model.compile(backend="eager")
    with pytest.raises(ModelError, match="a compiled one"):
        Protection(nn.Sequential(model))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"forward": "raise"}, """forward: got 'raise', want "stop", "clamp" or None"""),
        ({"backward": True}, "backward: got True"),
        ({"forward": None, "backward": None}, "forward and backward: got None for both"),
        ({"limit": 0}, "limit: got 0, want a positive number or None"),
        ({"limit": NAN}, "limit: got nan"),
        ({"limit": INF}, "limit: got inf"),
        ({"limit": "1"}, "limit: got '1'"),
        ({"limit": True}, "limit: got True"),
        ({"modules": ["1", "7"]}, "modules: got '7', want names of modules of the model"),
        ({"modules": [nn.Linear(1, 1)]}, "modules: got Linear"),
        ({"modules": [3]}, "modules: got int"),
    ],
)
def test_settings_that_make_no_sense_are_refused_and_nothing_is_attached(settings, words):
    model = sequential()
    before = hooks(model)
    with pytest.raises(SettingError, match=words):
        Protection(model, **settings)
    assert hooks(model) == before


def test_what_is_no_model_is_refused():
    with pytest.raises(ModelError, match=r"model: got int, want a torch.nn.Module"):
        Protection(3)
