"""The command ``posters configs``."""

from __future__ import annotations

from dataclasses import dataclass

from shards.console import exact_stdout
from shards.options import option
from toolkit.config.recipes import config_path, recipes


@dataclass(frozen=True)
class ConfigsOptions:
    """Options of ``posters configs``."""

    name: str = option("", positional=True)
    """Print the file of this recipe, with its comments. Without a name, list all recipes."""


def run_configs(options: ConfigsOptions) -> int:
    """Print a recipe or the list of recipes. Return the exit status."""
    if options.name:
        exact_stdout().write(config_path(options.name).read_text(encoding="utf-8"))
        return 0
    width = max(len(recipe.name) for recipe in recipes())
    for recipe in recipes():
        print(f"{recipe.name:<{width}}  {recipe.about}")
    print("\n`posters train --config NAME` uses a recipe. `posters configs NAME > my.yaml` writes a copy to change.")
    return 0
