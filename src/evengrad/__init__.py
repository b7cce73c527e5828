"""Keep the gradients of neural-network training even: see, say, cure, prove.

Every public name is loaded when it is first used, so that `import evengrad` is quick and a run log or a report can be
read on a machine without torch.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evengrad import clip as clip
    from evengrad import reference as reference
    from evengrad.checkup import Checkup, checkup
    from evengrad.clip import ByGlobalNorm, ByZScore
    from evengrad.diagnose import diagnose, explain
    from evengrad.guard import Guard, Protection, Rollback
    from evengrad.nouns import EvengradError, EvengradWarning, Event, Finding, Task, Verdict
    from evengrad.trial import Repair, Tuning, repair, tune

_HOME = {
    "ByGlobalNorm": "clip",
    "ByZScore": "clip",
    "Checkup": "checkup",
    "EvengradError": "nouns",
    "EvengradWarning": "nouns",
    "Event": "nouns",
    "Finding": "nouns",
    "Guard": "guard",
    "Protection": "guard",
    "Repair": "trial",
    "Rollback": "guard",
    "Task": "nouns",
    "Tuning": "trial",
    "Verdict": "nouns",
    "checkup": "checkup",
    "diagnose": "diagnose",
    "explain": "diagnose",
    "repair": "trial",
    "tune": "trial",
}
_ROOMS = ("clip", "reference")  # whole parts that are public: `evengrad.clip.ByPercentile`

__all__ = [
    "ByGlobalNorm",
    "ByZScore",
    "Checkup",
    "EvengradError",
    "EvengradWarning",
    "Event",
    "Finding",
    "Guard",
    "Protection",
    "Repair",
    "Rollback",
    "Task",
    "Tuning",
    "Verdict",
    "checkup",
    "diagnose",
    "explain",
    "repair",
    "tune",
]


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("evengrad")
    if name in _HOME:
        return getattr(import_module(f"evengrad.{_HOME[name]}"), name)
    if name in _ROOMS:
        return import_module(f"evengrad.{name}")
    raise AttributeError(f"module 'evengrad' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_ROOMS, "__version__"])


class _Package(ModuleType):
    """Keep `evengrad.checkup` and `evengrad.diagnose` the functions although rooms of the same names exist.

    Python binds an imported submodule to its parent's attribute; here that binding is ignored for these two names.
    `from evengrad.checkup import ...` is not affected.
    """

    @property
    def checkup(self) -> object:
        return __getattr__("checkup")

    @checkup.setter
    def checkup(self, room: object) -> None: ...

    @property
    def diagnose(self) -> object:
        return __getattr__("diagnose")

    @diagnose.setter
    def diagnose(self, room: object) -> None: ...


sys.modules[__name__].__class__ = _Package
