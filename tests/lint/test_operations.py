"""What the registry declares is documented, exercised by tests, and refuses bad input."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import build
from pvc.commands import VERBS, verbs_of
from pvc.commands.registry import Operation, Param, convert, convert_value, every_operation, find
from pvc.errors import Invalid

ROOT = Path(__file__).parents[2]
OPERATIONS = {found.name: found for found in every_operation()}
PARAMETERS = {
    f"{found.name}:{param.name}": (found, param) for found in OPERATIONS.values() for param in found.params
}


def test_the_table_of_verbs_is_what_the_modules_declare() -> None:
    said = {
        (noun, verb, module) for noun, of in VERBS.items() for module, verbs in of.items() for verb in verbs
    }
    declared = {(found.noun, found.verb, found.function.__module__) for found in OPERATIONS.values()}
    assert said == declared
    assert sum(len(verbs_of(noun)) for noun in VERBS) == len(said)


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_is_found_by_its_name(name: str) -> None:
    assert find(name) is OPERATIONS[name]


def needs(found: Operation) -> list[str]:
    return [param.name for param in found.params if param.required]


@pytest.mark.parametrize("name", build.generated())
def test_generated_files_are_fresh(name: str) -> None:
    assert (ROOT / name).read_text() == build.generated()[name], f"{name} is stale: ./build.py docs"


def phrases(path: Path) -> Iterator[str]:
    """Strings, and the words of each list, tuple and call in a line: `vm`, `tag`, `add` → "vm tag add".

    A call begins with what is called: `run_lab("cut", "n1")` and `lab.lab("cut", "n1")` say "lab cut n1". In
    tests/lab and in test_NOUN.py the noun goes without saying.
    """
    noun = "lab" if "lab" in path.parts else path.stem.removeprefix("test_")
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Constant(value=str(text)):
                yield text
            case ast.List(elts=parts) | ast.Tuple(elts=parts):
                yield from (words(parts), f"{noun} {words(parts)}")
            case ast.Call(func=function, args=parts):
                name = ast.unparse(function).replace("_", ".").rpartition(".")[2]
                yield from (words(parts), f"{noun} {words(parts)}", f"{name} {words(parts)}")


def words(parts: Sequence[ast.expr]) -> str:
    return " ".join(str(part.value) for part in parts if isinstance(part, ast.Constant))


@pytest.fixture(scope="module")
def exercised() -> set[str]:
    """Operations that a test calls by their words (`pvc vm tag add`) or their name (`vm.tag-add`)."""
    tests = [path for path in (ROOT / "tests").rglob("*.py") if "lint" not in path.parts]
    said = "\n".join(phrase for path in tests for phrase in phrases(path))
    return {name for name, found in OPERATIONS.items() if re.search(called(found), said)}


def called(found: Operation) -> str:
    plain = re.escape(f"{found.noun} {found.verb}".strip())
    return rf"(?<![\w-])(?:{plain}|{re.escape(found.name)})(?![\w-])"


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_is_exercised(name: str, exercised: set[str]) -> None:
    assert name in exercised, f"no test calls {name}"


@pytest.mark.parametrize("name", OPERATIONS)
def test_what_it_does_not_know_is_refused(name: str) -> None:
    with pytest.raises(Invalid, match="no parameter not_a_parameter"):
        convert(OPERATIONS[name], {"not_a_parameter": "1"})


@pytest.mark.parametrize("name", [found.name for found in OPERATIONS.values() if needs(found)])
def test_what_it_needs_is_missed(name: str) -> None:
    with pytest.raises(Invalid, match=f"{needs(OPERATIONS[name])[0]} is missing"):
        convert(OPERATIONS[name], {})


def wrong_values(param: Param) -> list[object]:
    """What this parameter can never be, in every way its declaration limits it."""
    wrong: list[object] = [{"an": "object"}]
    if param.kind in (int, float):
        wrong += ["many", "nan", "1e999", True, ""]
    if param.kind is bool:
        wrong += ["perhaps", 7]
    if param.choices:
        wrong += ["no such choice", ""]
    if param.arg.minimum is not None:
        wrong.append(param.arg.minimum - 1)
    if param.arg.maximum is not None:
        wrong.append(param.arg.maximum + 1)
    if param.kind is str:
        wrong += ["a\0b", True]
    return wrong


@pytest.mark.parametrize("name", PARAMETERS)
def test_wrong_values_are_refused(name: str) -> None:
    _, param = PARAMETERS[name]
    for value in wrong_values(param):
        with pytest.raises(Invalid, match=re.escape(param.name)):
            convert_value(param, value)


def test_every_option_says_what_it_is_for() -> None:
    unsaid = [name for name, (_, param) in PARAMETERS.items() if not param.positional and not param.arg.help]
    assert not unsaid, f"options without help: {', '.join(unsaid)}"


CHANGES = [found for found in OPERATIONS.values() if not found.is_local and not found.is_read]


@pytest.mark.parametrize("found", CHANGES, ids=lambda found: found.name)
def test_a_change_says_what_was_done(found: Operation) -> None:
    """Of one that is waited for, how it stands; of one whose answer is what was asked for, the answer."""
    assert found.done or found.waits or found.name in ("cluster.init", "api.token-add")
    fields = set(getattr(found.returns, "__dataclass_fields__", ()))
    known = {param.name for param in found.params if param.required} | fields | {"pending"}
    assert set(re.findall(r"{(\w+)}", found.done)) <= known


def test_no_two_operations_share_a_route() -> None:
    routes: dict[tuple[str, str], list[str]] = {}
    for found in OPERATIONS.values():
        if not found.is_local:
            shape = re.sub(r"{\w+}", "{}", found.path)
            routes.setdefault((found.method, shape), []).append(found.name)
    assert not [names for names in routes.values() if len(names) > 1]


SECRETS = (
    *("vm.user-data-get", "vm.snapshot-download-piece"),
    *("storage.volume-download-map", "storage.volume-download-piece"),
)
"""What not every reader may read."""


def test_reading_is_get_and_only_reading() -> None:
    from pvc.commands.registry import Role

    def is_wrong(found: Operation) -> bool:
        is_open = found.role is Role.READ or found.name in SECRETS
        return not found.is_local and found.is_read != is_open

    assert not [found.name for found in OPERATIONS.values() if is_wrong(found)]
