"""The code of a treatment as a user pastes it."""

import copy
from typing import Any

import torch
from torch import Tensor, nn


def ran(code: str, **names: Any) -> dict[str, Any]:
    """Run code among names, torch and nn with them, and return all that there are then."""
    names |= {"torch": torch, "nn": nn}
    exec(compile(code, "pasted", "exec"), names)
    return names


def pasted(code: str, model: nn.Module, **names: Any) -> nn.Module:
    """Run code on a copy of a model, and return what the model is then."""
    return ran(code, model=copy.deepcopy(model), **names)["model"]


def check_code_makes_it(treated: Any, model: nn.Module, batch: Tensor) -> Any:
    """Hold the code of a treatment to making the same model, and the model to giving the shape that it gave."""
    by_hand = pasted(treated.code, model)
    kinds = [(name, type(module).__name__) for name, module in treated.subject.named_modules()]
    assert kinds == [(name, type(module).__name__) for name, module in by_hand.named_modules()]
    by_hand.load_state_dict(treated.subject.state_dict())
    torch.testing.assert_close(by_hand.eval()(batch), treated.subject.eval()(batch), rtol=0, atol=0)
    assert treated.subject.train()(batch).shape == model(batch).shape
    return treated
