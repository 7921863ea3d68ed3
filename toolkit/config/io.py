"""Write a configuration as YAML."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import yaml

from shards.storage.files import atomic_write
from toolkit.config.schema import Config


def config_dict(config: Config) -> dict[str, Any]:
    """Return the configuration as a nested dict of YAML types."""
    return yaml.safe_load(yaml.safe_dump(_plain(dataclasses.asdict(config))))


def save_config(config: Config, path: Path) -> None:
    """Write all keys to a YAML file that ``--config`` can read."""
    with atomic_write(path, "w") as stream:
        yaml.safe_dump(config_dict(config), stream, sort_keys=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, (list, tuple)) else value
