"""Every message that advises something is in `tests/support/advice_table.py`, with the test that follows it."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.support.advice_table import FOLLOWED, OTHERS
from tests.support.paths import ROOT

ADVISES = re.compile(
    r"\b(delete|remove|restore|put (it )?back|again)\b|another --out|--resume"
    r"|sea-pipeline (verify|label|teacher|train)\b"
)


def test_every_message_with_advice_is_in_the_table() -> None:
    known = [text for table in (FOLLOWED, OTHERS) for texts in table.values() for text in texts]
    found = {text for package in ("sea_pipeline", "trainer") for text in _messages(ROOT / package)}
    assert len(known) == len(set(known))
    listed = {text: [line for line in known if _says(line, text)] for text in found}
    assert [text for text, texts in listed.items() if len(texts) != 1] == [], "follow it in a test, and name it here"
    said = [line for texts in listed.values() for line in texts]
    assert sorted(said) == sorted(known), "each line is of one message that is said"


def _says(line: str, text: str) -> bool:
    return text.endswith(line[1:]) if line.startswith("…") else text == line


def test_the_tests_that_follow_it_are_there() -> None:
    for where in FOLLOWED:
        file, _, name = where.partition("::")
        functions = [node for node in ast.parse((ROOT / file).read_text()).body if isinstance(node, ast.FunctionDef)]
        assert name in {function.name for function in functions}, where


def _messages(package: Path) -> Iterator[str]:
    """Texts of a package that advise something; docstrings and lists of words are none."""
    for path in package.rglob("*.py"):
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
