"""The tables of docs/reference/exit-codes.md and docs/contribute/repaired-faults.md are true.

Their tests exist, and the tests of a row look for the lines that exit-codes.md quotes.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

#: What there must be a row for.
WANTED = [
    "kill -9 of one rank", "kill -9 of all ranks", "kill -9 of a preprocessing worker",
    "kill -9 during a checkpoint write", "kill -9 during a shard write", "SIGTERM", "full disk: checkpoint",
    "full disk: model", "full disk: shards", "full disk: predictions", "a truncated tar", "a flipped byte",
    "a deleted shard", "a stale index", "a manifest from another build", "the newest checkpoint is corrupt",
    "two runs started into the same folder", "network cut during a remote read", "NaN loss, `train.on_nonfinite stop`",
    "NaN loss, `train.on_nonfinite skip`", "out of GPU memory",
]  # fmt: skip
#: The shortest words that count as looked for.
SHORTEST = 10


@dataclass(frozen=True)
class Row:
    fault: str
    said: str
    status: str
    kept: str
    tests: list[str]

    @property
    def quotes(self) -> list[str]:
        """The lines that are quoted."""
        found: list[str] = re.findall(r"`([^`]+)`", self.said)
        return [quote for quote in found if " " in quote and not quote.startswith("posters ")]


def rows() -> list[Row]:
    found = []
    page = (ROOT / "docs" / "reference" / "exit-codes.md").read_text()
    for line in page[page.index("| fault |") :].splitlines():  # the table of statuses comes first
        if line.startswith("| ") and not line.startswith(("| ---", "| fault ")):
            fault, said, status, kept, tests = (cell.strip() for cell in line.strip("| ").split(" | "))
            found.append(Row(fault, said, status, kept, re.findall(r"`([^`]+)`", tests)))
    return found


ROWS = rows()
each_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.fault[:50])


def functions(path: Path) -> tuple[ast.Module, dict[str, ast.FunctionDef]]:
    module = ast.parse(path.read_text())
    return module, {node.name: node for node in module.body if isinstance(node, ast.FunctionDef)}


def words_of(test: str) -> set[str]:
    """The pieces of text in a test and in its module's constants, those of f-strings and expressions too."""
    path, name = test.split("::")
    module, found = functions(ROOT / path)
    constants = [node for node in module.body if isinstance(node, (ast.Assign, ast.AnnAssign))]
    texts = {
        node.value
        for tree in (found[name], *constants)
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    return {part.replace("\\", "") for text in texts for part in text.split(".*")}


def test_every_fault_has_a_row():
    faults = [row.fault for row in ROWS]
    assert len(set(faults)) == len(faults)
    assert [wanted for wanted in WANTED if not any(fault.startswith(wanted) for fault in faults)] == []


@each_row
def test_the_cells_are_filled_and_the_tests_exist(row: Row):
    assert row.said and row.kept and row.tests
    assert re.fullmatch(r"(0|1|2|69|75|137)\b[^|]*", row.status)
    for test in row.tests:
        path, _, name = test.partition("::")
        assert name.startswith("test_") and name in functions(ROOT / path)[1], test


@each_row
def test_what_is_quoted_is_looked_for(row: Row):
    """Some words of every quoted line stand in one of the row's tests."""
    words = {word for test in row.tests for word in words_of(test) if len(word.strip()) >= SHORTEST}
    for quote in row.quotes:
        assert any(word.strip(" :") in quote for word in words), quote


def repaired() -> list[tuple[str, list[str]]]:
    """(fault, its tests) of every row of docs/contribute/repaired-faults.md."""
    lines = (ROOT / "docs" / "contribute" / "repaired-faults.md").read_text().splitlines()
    cells = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    found = [(row[0], re.findall(r"`([^`]+)`", row[-1])) for row in cells if "::" in row[-1]]
    assert all(len(row) == 2 for row in cells)
    return found


@pytest.mark.parametrize(("fault", "tests"), repaired(), ids=[fault[:50] for fault, _ in repaired()])
def test_a_repaired_fault_has_a_test(fault: str, tests: list[str]):
    assert tests
    for test in tests:
        path, _, name = test.partition("::")
        assert name.startswith("test_") and name in functions(ROOT / path)[1], test
