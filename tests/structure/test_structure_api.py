"""The public surface is pinned, and every name of it is explained."""

from types import ModuleType

from house_api import SNAPSHOT, public_api

import evengrad
from evengrad.nouns import Curve, Reading

HOW = "the public surface changed; if that is meant: python tests/structure/house_api.py, and a line in CHANGELOG.md"


def surface(**names: object) -> ModuleType:
    module = ModuleType("module")
    module.__dict__.update(names, __all__=list(names))
    return module


def undocumented(module: ModuleType) -> list[str]:
    """Name what is public and has no docstring of its own: an inherited one explains something else."""
    bare = []
    for name in module.__all__:
        thing = getattr(module, name)
        if not (thing.__doc__ or "").strip():
            bare.append(name)
        if isinstance(thing, type):
            own = {member: value for member, value in vars(thing).items() if not member.startswith("_")}
            bare += [
                f"{name}.{member}"
                for member, value in own.items()
                if (callable(value) or isinstance(value, property)) and not (value.__doc__ or "").strip()
            ]
    return bare


def test_the_public_surface_is_the_pinned_one():
    assert public_api(evengrad).splitlines() == SNAPSHOT.read_text(encoding="utf-8").splitlines(), HOW


def test_a_changed_signature_changes_the_text():
    def see(model: int, *, often: bool = False) -> None: ...

    def see_more(model: int, *, often: bool = True) -> None: ...

    assert public_api(surface(see=see)) == "see(model: int, *, often: bool = False) -> None\n"
    assert public_api(surface(see=see)) != public_api(surface(see=see_more))


def test_members_of_classes_are_part_of_the_text():
    class Thing(Reading):
        def __init__(self, size: int) -> None: ...
        def grow(self, by: Curve) -> None: ...
        def _secret(self) -> None: ...

        @property
        def size(self) -> "tuple[Curve, ...]": ...

    assert public_api(surface(Thing=Thing)).splitlines() == [
        "class Thing(size: int) < Reading",
        "    Thing.grow(self, by: Curve) -> None",
        "    Thing.size -> tuple[Curve, ...]",
    ]


def test_every_public_name_has_a_docstring():
    assert undocumented(evengrad) == []


def test_a_public_name_without_a_docstring_is_found():
    class Thing:
        """Words."""

        def bare(self) -> None: ...

    def f() -> None: ...

    assert undocumented(surface(Thing=Thing, f=f)) == ["Thing.bare", "f"]
