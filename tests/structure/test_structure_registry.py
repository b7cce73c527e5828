"""Every rule, treatment and policy is listed in its `ALL`; every rule has a code of its own and a page."""

import pytest
from house_registry import HEADINGS, REGISTRIES, registry_problems, rule_problems
from house_source import PACKAGE

from evengrad import clip, treat
from evengrad.clip import transforms
from evengrad.diagnose import rules

RULES, TREATMENTS, POLICIES, TRANSFORMS = REGISTRIES
PAGE = "\n".join(f"    {heading}\n        Words." for heading in HEADINGS)
LISTED = {"diagnose/rules/__init__.py": "ALL: tuple[AbstractRule, ...] = (A(),)\n"}


def rule(code: str = "EG101", name: str = "A", page: str = PAGE) -> str:
    attribute = f'    code: ClassVar[str] = "{code}"'
    return f'"""{code}: words."""\n\nclass {name}(AbstractRule):\n    """Words.\n\n{page}\n    """\n\n{attribute}\n'


@pytest.mark.parametrize("registry", REGISTRIES, ids=lambda registry: registry.base)
def test_every_class_of_a_kind_is_listed(registry):
    assert registry_problems(PACKAGE, registry) == []


def test_what_is_listed_is_what_the_package_exports():
    assert {type(one).__name__ for one in rules.ALL} == set(rules.__all__) - {"ALL"}
    assert {kind.__name__ for kind in (*treat.ALL, *clip.ALL)} <= {*treat.__all__, *clip.__all__}
    assert {kind.__name__ for kind in transforms.ALL} <= {*transforms.__all__}


def test_every_rule_has_a_code_of_its_own_and_a_page():
    assert rule_problems(PACKAGE) == []


def test_a_class_that_is_not_listed_is_found(tree):
    root = tree(LISTED | {"diagnose/rules/_a.py": rule(), "diagnose/rules/_b.py": rule("EG102", "B")})
    assert registry_problems(root, RULES) == ["diagnose/rules/_b.py:3: B is not in ALL"]


def test_a_listed_class_that_is_none_of_the_kind_is_found(tree):
    root = tree(LISTED | {"diagnose/rules/_a.py": "class A: ...\n"})
    assert registry_problems(root, RULES) == [
        "ALL of diagnose/rules has A, which is no AbstractRule or AbstractRunRule"
    ]


def test_a_class_that_is_listed_twice_is_found(tree):
    root = tree({"clip/_choice.py": "ALL = (A, A)\n", "clip/_a.py": "class A(AbstractPolicy): ...\n"})
    assert registry_problems(root, POLICIES) == ["ALL of clip has A twice"]


def test_a_class_in_another_folder_is_found(tree):
    root = tree({"clip/_choice.py": "ALL = (A,)\n", "guard/_a.py": "class A(AbstractPolicy): ...\n"})
    assert registry_problems(root, POLICIES) == ["guard/_a.py:1: A is not in its folder clip"]


def test_a_missing_list_is_found(tree):
    root = tree({"treat/_make.py": "ALL = ()[:0]\n"})
    assert registry_problems(root, TREATMENTS) == ["treat/_make.py:1: no tuple called ALL"]


def test_only_the_combined_treatment_may_be_left_out(tree):
    text = "class Combined(AbstractTreatment): ...\nclass Other(AbstractTreatment): ...\n"
    root = tree({"treat/_make.py": "ALL = ()\n", "treat/_a.py": text})
    assert registry_problems(root, TREATMENTS) == ["treat/_a.py:2: Other is not in ALL"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (rule("EG1"), "3: A has the code 'EG1', not of the form EG101"),
        (rule("eg101"), "3: A has the code 'eg101', not of the form EG101"),
        (rule(page=PAGE.replace("Hurts:", "Harms:")), "3: the page of A lacks Hurts:"),
        (rule().replace('"""EG101: ', '"""EG102: '), "1: the file of EG101 does not begin with its code"),
        (rule().replace("    code:", "    number:"), "3: A has the code '', not of the form EG101"),
    ],
)
def test_a_rule_without_its_code_or_page_is_found(tree, text, problem):
    assert rule_problems(tree({"diagnose/rules/_a.py": text})) == [f"diagnose/rules/_a.py:{problem}"]


def test_a_code_that_is_used_twice_is_found(tree):
    root = tree({"diagnose/rules/_a.py": rule(), "diagnose/rules/_b.py": rule(name="B")})
    assert rule_problems(root) == ["diagnose/rules/_b.py:3: B has the code EG101 of A"]
