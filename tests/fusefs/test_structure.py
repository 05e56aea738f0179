"""How the mount's classes may be built and changed: all that they work with is given when they are made."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

FUSEFS = Path(__file__).resolve().parents[2] / "fusefs"
MODULES = sorted(FUSEFS.rglob("*.py"))
ARGUMENTS_MAX = 7
OF_PYFUSE3 = {"entry", "data"}  # what these variables of handlers/pyfuse.py hold is made to be filled in
OF_TRIO = {"scope"}  # a cancel scope's deadline is put off by assigning to it


def stores(tree: ast.AST) -> Iterator[ast.Attribute]:
    """Assignments to attributes of other objects than the one whose method it is."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store | ast.Del):
            of = node.value
            if not (isinstance(of, ast.Name) and of.id == "self"):
                yield node


def own_attributes(tree: ast.AST) -> set[str]:
    """The attributes of the classes that are defined here."""
    found = set()
    for made in (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)):
        found |= {item.target.id for item in made.body if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)}
        for node in ast.walk(made):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
                found.add(node.attr)
    return found


def violations(source: str, exempt: frozenset[str] = frozenset()) -> list[str]:
    tree = ast.parse(source)
    own = own_attributes(tree)
    found = [node for node in stores(tree) if node.attr not in own and ast.unparse(node.value) not in exempt]
    return [f"line {node.lineno}: {ast.unparse(node)}" for node in found]


def ids(path: Path) -> str:
    return str(path.relative_to(FUSEFS))


@pytest.mark.parametrize("path", MODULES, ids=ids)
def test_only_the_module_of_a_class_assigns_to_its_attributes(path: Path) -> None:
    exempt = frozenset(OF_PYFUSE3 | OF_TRIO) if path.name == "pyfuse.py" else frozenset(OF_TRIO)
    assert violations(path.read_text(), exempt) == []


def test_such_an_assignment_is_found() -> None:
    assert violations("def f(state):\n    state.node = 1") == ["line 2: state.node"]
    assert violations("def f(state):\n    state.io.handles += 1") == ["line 2: state.io.handles"]
    assert violations("class A:\n    def f(self):\n        self.b = 1") == []
    assert violations("class A:\n    node: int\n\ndef f(a):\n    a.node = 1") == []


def constructors() -> Iterator[tuple[str, int]]:
    """How many arguments each class takes; records, which are dataclasses and tuples, have no constructor of their own."""
    for path in MODULES:
        for made in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef)):
            for method in made.body:
                if isinstance(method, ast.FunctionDef) and method.name == "__init__":
                    arguments = method.args
                    yield f"{ids(path)}: {made.name}", len(arguments.args) - 1 + len(arguments.kwonlyargs)


def test_no_constructor_takes_more_than_seven_arguments() -> None:
    counted = dict(constructors())
    assert {name: count for name, count in counted.items() if count > ARGUMENTS_MAX} == {}
    assert len(counted) > 20
