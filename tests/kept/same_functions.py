"""Is every function what it was, after files were moved? python tests/kept/same_functions.py OLD [NEW]

OLD and NEW are commits; without NEW, the files as they lie here. Functions and methods are compared by their syntax
trees, wherever their files are. Imports are left out, and so are names of modules, before a name (``module.f``) and as
a string ("toolkit.module"), which a move may change. Prints what is only in one of the two, and ends with 1 if there
is anything.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("shards", "toolkit", "launch")


def sources(commit: str | None) -> Iterator[tuple[str, str]]:
    """(path, text) of every Python file of the packages."""
    if commit is None:
        for package in PACKAGES:
            for path in sorted((ROOT / package).rglob("*.py")):
                yield path.relative_to(ROOT).as_posix(), path.read_text()
        return
    names = git("ls-tree", "-r", "--name-only", commit, *PACKAGES).splitlines()
    for name in names:
        if name.endswith(".py"):
            yield name, git("show", f"{commit}:{name}")


def git(*words: str) -> str:
    """What git prints; its own error line ends the program."""
    done = subprocess.run(["git", *words], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"error: git {words[0]} failed")
    return done.stdout


class Plain(ast.NodeTransformer):
    """Without imports, without docstrings, and without the module before a name."""

    def __init__(self, modules: set[str]) -> None:
        self.modules = modules

    def visit_Import(self, node: ast.Import) -> None:
        return None

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        return None

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        if isinstance(node.value, str) and re.fullmatch(rf"({'|'.join(PACKAGES)})(\.\w+)+", node.value):
            return ast.Constant("a module")
        return node

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        self.generic_visit(node)
        root = node.value
        while isinstance(root, ast.Attribute):
            root = root.value
        if isinstance(root, ast.Name) and root.id in self.modules:
            return ast.Name(node.attr, node.ctx)
        return node


def functions(path: str, text: str) -> Iterator[tuple[str, str]]:
    """(qualified name, syntax tree as text) of every function of a file, without docstrings."""
    tree = ast.parse(text, path)
    modules = modules_of_ours(tree)

    def walk(node: ast.AST, prefix: str) -> Iterator[tuple[str, str]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef):
                yield from walk(child, f"{prefix}{child.name}.")
            elif isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                if ast.get_docstring(child) is not None:
                    child.body = child.body[1:] or [ast.Pass()]
                plain = Plain(modules).visit(child)
                plain.body = plain.body or [ast.Pass()]
                yield f"{prefix}{child.name}", ast.dump(plain)

    yield from walk(tree, "")


def modules_of_ours(tree: ast.Module) -> set[str]:
    """Names under which a file knows what is imported from this project, classes aside."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {a.asname or a.name.split(".")[0] for a in node.names if a.name.split(".")[0] in PACKAGES}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PACKAGES:
            found |= {a.asname or a.name for a in node.names if a.name.islower() and not a.name.startswith("_")}
    return found


def main() -> int:
    """Compare, and say what differs."""
    if len(sys.argv) not in (2, 3):
        raise SystemExit("error: give one or two commits: python tests/kept/same_functions.py OLD [NEW]")
    old, new = (*sys.argv[1:], None)[:2]
    before, after = (
        Counter(found for path, text in sources(commit) for found in functions(path, text)) for commit in (old, new)
    )
    lost, gained = before - after, after - before
    for title, found in (("only before", lost), ("only now", gained)):
        for (name, _), count in sorted(found.items()):
            print(f"{title}: {name}" + (f" ({count} times)" if count > 1 else ""))
    print(f"{sum((before & after).values())} functions are the same, {sum(lost.values())} only before, "
          f"{sum(gained.values())} only now")  # fmt: skip
    return int(bool(lost or gained))


if __name__ == "__main__":
    sys.exit(main())
