"""Recipes: the configurations that this toolkit ships, by name. ``posters train --config best`` uses one.

The files are in configs/ of a checkout. The link toolkit/recipes makes them a part of the installed package. The first
line of each file has the name of the recipe and its description: ``# best: start here. ...``.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from shards.errors import UserError, nearest, printable_line
from shards.storage.kinds import CONFIG, other_kind
from shards.storage.paths import is_url


class Recipe(NamedTuple):
    """A shipped configuration."""

    name: str
    about: str
    path: Path


def recipes() -> list[Recipe]:
    """Return all recipes. The best recipe to start with is first, and the other recipes are sorted by name."""
    found = []
    for path in Path(str(files("toolkit") / "recipes")).glob("*.yaml"):
        with open(path, encoding="utf-8") as stream:
            name, _, about = stream.readline().strip("# \n").partition(": ")
        found.append(Recipe(name, about, path))
    return sorted(found, key=lambda recipe: (recipe.name != "best", recipe.name))


def config_path(text: str) -> Path:
    """Return the path of a configuration: a file, or else the recipe of this name. Raises UserError if neither exists.

    The name of a recipe's file, such as poster_cpu or configs/poster_cpu.yaml, is accepted as well, so the paths of a
    checkout also work with an installed package.
    """
    path = Path(text)
    if path.is_file():
        return path
    by_name = {recipe.name: recipe.path for recipe in recipes()}
    by_file = {recipe.path.stem: recipe.path for recipe in recipes()}
    name = path.stem if path.parent in (Path(), Path("configs")) and path.suffix in ("", ".yaml") else ""
    plain = name.lower().replace("_", "-")
    if found := by_name.get(plain) or by_file.get(name):
        return found
    if text and (wrong := other_kind(path, CONFIG)):
        raise UserError("config-file", wrong)
    near = nearest(plain, by_name)
    hint = f"did you mean {near[0]!r}? The" if near and not is_url(text) else "the"
    known = f"{hint} recipes are {', '.join(by_name)}"
    raise UserError("config-file", f"config file not found: {printable_line(text)}; {known}")
