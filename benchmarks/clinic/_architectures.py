"""Healthy architectures before their first step, all of them; those of transformers where it is installed."""

from importlib.util import find_spec

from ._nets_other import OTHER
from ._nets_sequence import SEQUENCE
from ._nets_vision import VISION
from ._program import Architecture


def _listed() -> tuple[Architecture, ...]:
    if find_spec("transformers") is None:
        return ()
    from ._nets_transformers import TRANSFORMERS

    return TRANSFORMERS


ARCHITECTURES = (*OTHER, *VISION, *SEQUENCE, *_listed())
