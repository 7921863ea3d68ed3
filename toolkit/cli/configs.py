"""The command ``posters configs``."""

from __future__ import annotations

from dataclasses import dataclass

from shards.console import exact_stdout
from shards.errors import UserError, one_line
from shards.options import option
from shards.storage.kinds import CONFIG, other_kind
from toolkit.config.recipes import config_path, recipes


@dataclass(frozen=True)
class ConfigsOptions:
    """Options of ``posters configs``."""

    name: str = option("", positional=True)
    """Print the file of this recipe, with its comments. Without a name, list all recipes."""


def run_configs(options: ConfigsOptions) -> int:
    """Print a recipe or the list of recipes. Return the exit status."""
    if options.name:
        path = config_path(options.name)
        if wrong := other_kind(path, CONFIG):
            raise UserError("config-file", wrong)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            what = f"config file {path} cannot be read ({one_line(error)})"
            raise UserError("config-file", f"{what}; `posters configs` lists the recipes") from None
        exact_stdout().write(text)
        return 0
    width = max(len(recipe.name) for recipe in recipes())
    for recipe in recipes():
        print(f"{recipe.name:<{width}}  {recipe.about}")
    print("\n`posters train --config NAME` uses a recipe. `posters configs NAME > my.yaml` writes a copy to change.")
    return 0
