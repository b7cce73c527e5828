"""Functions that a model calls are read as layers are, and the mode that sees them is never left on."""

import threading
import weakref

import pytest
import torch
from sampled_models import CLOSE, exact, is_close, sampled_once, vectors
from torch import nn
from torch.nn import functional
from torch.overrides import has_torch_function

from evengrad.probe import Sampler


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.acts = nn.Linear(6, 6), nn.Linear(6, 6), nn.Sequential(nn.SiLU(), nn.ReLU(inplace=True))
        self.inner = Inner()

    def forward(self, x):
        h = functional.relu(self.a(x), inplace=True)
        h = torch.tanh(self.b(h))
        return self.inner(self.acts((h + 1).sigmoid() * functional.silu(h)))


class Inner(nn.Module):
    def forward(self, x):
        return functional.gelu(x) + functional.hardtanh(x, -2, 2) + (x - 0.1).relu_()


def is_on():
    return has_torch_function((None,))


def test_functions_are_read_as_by_the_exact_probe_and_modules_once():
    model, x = Functional(), vectors()
    wanted = exact(model, lambda out: out.square().sum(), x)
    found = sampled_once(model, lambda out: out.square().sum(), x)
    names = ["a", "relu()", "b", "tanh()", "sigmoid()", "silu()", "acts.0", "acts.1"]
    assert [layer.name for layer in found][:8] == names
    assert [layer.name for layer in found] == [layer.name for layer in wanted]
    assert all(is_close(one, other, **CLOSE) for one, other in zip(found, wanted, strict=True))


def test_channels_of_a_function_after_a_convolution_are_units():
    class Pictures(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 5, 3), nn.Linear(6, 4)

        def forward(self, x):
            return functional.relu(self.head(functional.relu(self.conv(x))))

    layers = {layer.name: layer for layer in sampled_once(Pictures(), torch.sum, torch.randn(2, 3, 8, 8))}
    assert (layers["relu()"].units, layers["relu()"].observations) == (5, 2 * 36)
    assert (layers["relu()#2"].units, layers["relu()#2"].observations) == (4, 2 * 5 * 6)


def test_parts_that_are_called_without_the_model_are_read_too():
    model, x, sampler = Functional(), vectors(), None
    sampler = Sampler(model)
    sampler.arm()
    model.inner(model.a(x)).sum().backward()
    names = [layer.name for layer in sampler.readings(sampler.packed().tolist())]
    assert names == ["a", "inner.gelu()", "inner.relu()", "inner"]
    assert not is_on()


class Trouble(nn.Module):
    """Calls itself, and raises; a function has the last word."""

    def __init__(self, error):
        super().__init__()
        self.fc, self.error = nn.Linear(6, 6), error

    def forward(self, x, depth=2):
        assert depth == 2 or is_on()
        h = functional.relu(self.fc(x))
        if depth:
            try:
                h = h + self(x, depth - 1)
            except ValueError:
                h = torch.tanh(h)
        elif self.error:
            raise self.error
        return h


def test_a_model_that_calls_itself_has_one_mode():
    model = Trouble(None)
    sampler = Sampler(model)
    names = [layer.name for layer in sampled_once(model, torch.sum, vectors(), sampler)]
    assert names == ["fc", "relu()", "fc#2", "relu()#2", "fc#3", "relu()#3"]
    assert not is_on()


def test_an_error_that_is_caught_in_the_model_ends_nothing():
    names = [layer.name for layer in sampled_once(Trouble(ValueError("caught")), torch.sum, vectors())]
    assert names == ["fc", "relu()", "fc#2", "relu()#2", "fc#3", "relu()#3", "tanh()"]
    assert not is_on()


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyboardInterrupt("stop")])
def test_an_error_leaves_no_mode_behind(error):
    model, x = Trouble(error), vectors()
    sampler = Sampler(model)
    sampler.arm()
    with pytest.raises(type(error), match=str(error)):
        model(x)
    if isinstance(error, Exception):
        assert not is_on()
    sampler.disarm()
    assert not is_on()
    model.error = None
    assert len(sampled_once(model, torch.sum, x, sampler)) == 6


def test_a_hook_of_the_user_that_raises_before_the_forward_leaves_no_mode_behind():
    model = Functional()
    model.register_forward_pre_hook(lambda module, args: 1 / 0)
    sampler = Sampler(model)
    sampler.arm()
    with pytest.raises(ZeroDivisionError, match="division"):
        model(vectors())
    assert not is_on()
    sampler.disarm()


def test_a_mode_of_the_user_inside_the_model_is_left_where_it_is():
    class Device(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(6, 6)

        def forward(self, x):
            with torch.device("meta"):
                empty = functional.relu(self.fc(x))
                assert torch.zeros(1).is_meta
            assert not torch.zeros(1).is_meta
            return empty

    with torch.device("cpu"):
        names = [layer.name for layer in sampled_once(Device(), torch.sum, vectors())]
    assert names == ["fc", "relu()"]
    assert not is_on()


def test_of_several_replicas_in_threads_one_is_read():
    model, x = Functional(), vectors()
    sampler, outputs = Sampler(model), {}
    sampler.arm()

    def replicated(module):
        replica = module._replicate_for_data_parallel()
        for name, child in module._modules.items():
            replica._modules[name] = replicated(child)
        for name, parameter in module._parameters.items():
            setattr(replica, name, parameter.view_as(parameter))
        return replica

    replicas = [replicated(model) for _ in range(3)]

    def run(number):
        outputs[number] = replicas[number](x + number)
        assert not is_on()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
        if thread is threads[0]:
            thread.join()  # so that its number may be that of the next one
    for thread in threads:
        thread.join()
    sum(outputs.values()).square().sum().backward()
    found = sampler.readings(sampler.packed().tolist())
    sampler.disarm()
    wanted = sampled_once(model, lambda out: out.square().sum(), x)
    assert [layer.name for layer in found] == [layer.name for layer in wanted]
    assert [layer.activation_rms for layer in found] == pytest.approx([layer.activation_rms for layer in wanted])


def test_data_parallel_without_devices_is_read_as_the_model_is():
    model, x = Functional(), vectors()
    parallel = nn.DataParallel(model)
    found = sampled_once(parallel, torch.sum, x)
    wanted = sampled_once(model, torch.sum, x)
    assert [layer.name for layer in found] == [f"module.{layer.name}" for layer in wanted]


def test_the_output_of_the_last_function_is_let_go_after_the_forward():
    model = Trouble(None)
    sampler = Sampler(model)
    sampler.arm()
    output = weakref.ref(model(vectors(), 0))
    assert output() is None
    sampler.disarm()


def test_a_module_whose_output_a_hook_of_the_user_changes_is_read_as_changed():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.act = nn.ReLU()
            self.act.register_forward_hook(lambda module, args, out: out * 2)

        def forward(self, x):
            return self.act(x)

    layers = sampled_once(Model(), torch.sum, torch.ones(3, requires_grad=True))
    assert [layer.name for layer in layers] == ["relu()", "act"]
    assert [layer.activation_rms for layer in layers] == pytest.approx([1.0, 2.0])


def test_models_of_torch_s_own_modules_need_no_mode():
    model, seen = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.LayerNorm(6)), []
    model[2].register_forward_hook(lambda module, args, out: seen.append(is_on()))
    sampled_once(model, torch.sum, vectors())
    assert seen == [False]
