"""Every message that advises something is in `tests/support/advice.txt`, below the test that follows it, or below what
it is about where no damaged or unfinished folder is: a new one needs a line there."""

import ast
import re
from collections.abc import Iterator

from tests.support.paths import MODULES, ROOT

TABLE = (ROOT / "tests/support/advice.txt").read_text().splitlines()
ADVISES = re.compile(
    r"\b(delete|remove|restore|put (it )?back|again)\b|another --out|--resume"
    r"|sea-pipeline (verify|label|teacher|train)\b"
)


def test_every_message_with_advice_is_in_the_table() -> None:
    known = [line.strip() for line in TABLE if line.startswith(" ")]
    found = set(_messages())
    assert len(known) == len(set(known))
    assert sorted(found - set(known)) == [], "follow it in a test, and put it below that test there"
    assert sorted(set(known) - found) == [], "it is said no more"


def test_the_tests_that_follow_it_are_there() -> None:
    """Headings that are no tests say what their messages are about."""
    for where in (line for line in TABLE if not line.startswith(" ")):
        file, _, name = where.partition("::")
        assert bool(name) == file.startswith("tests/"), where
        if not name:
            continue
        functions = [node for node in ast.parse((ROOT / file).read_text()).body if isinstance(node, ast.FunctionDef)]
        assert name in {function.name for function in functions}, where


def _messages() -> Iterator[str]:
    """Texts of ours that advise something; docstrings and lists of words are none."""
    for path in MODULES.values():
        tree = ast.parse(path.read_text())
        inner = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)}
        inner -= {id(node) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)}
        docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            text = "" if id(node) in inner | docstrings else _text(node)
            if " " in text and "\n" not in text and ADVISES.search(text):
                yield text


def _text(node: ast.AST) -> str:
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
