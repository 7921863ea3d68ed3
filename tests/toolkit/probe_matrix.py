"""Combinations of what cuts an update into parts, trained for two epochs in this process of a launch.

python probe_matrix.py SHARDS OUT few|all: writes OUT/<combination>.pt, with the loss of every update, each epoch's
training loss and the last weights. Nothing is validated or saved between: other tests compare that.
"""

from __future__ import annotations

import copy
import csv
import itertools
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))

from train_tools import TINY_VIT, tiny_config

from shards.dataset.manifest import Manifest
from toolkit.config.schema import Config
from toolkit.data.sources.shard_reader import ShardReader
from toolkit.distributed.collectives import make_accelerator
from toolkit.training.batches import train_plan
from toolkit.training.setup import build_setup
from toolkit.training.trainer import Trainer

#: What each combination has one of: name → keys of the config.
CHOICES: dict[str, dict[str, dict[str, Any]]] = {
    "accumulation": {"1": {}, "3": {"train.accumulation": 3}},
    "compile": {"off": {}, "on": {"train.compile": True}},
    "mixing": {"off": {}, "on": {"augment.mixup": 0.4, "augment.cutmix": 1.0}},
    "sampling": {"uniform": {}, "genre": {"data.sampling": "genre", "data.repeat_below": 0.4}},
    "left over": {"1": {}, "2": {}, "3": {}},
}
OPTIONS = (
    *TINY_VIT, "--optim.name=sgd", "--optim.lr=0.05", "--train.epochs=2", "--train.log_steps=1",
)  # fmt: skip


class Bare(Trainer):
    """Training alone."""

    def _validate(self, row: dict[str, Any]) -> None:
        self.train_losses = [*getattr(self, "train_losses", []), row["train_loss"]]
        self.state.epoch, self.state.step, self.state.loss_sum = self.state.epoch + 1, 0, 0.0


def combinations() -> list[dict[str, str]]:
    """All of them, each by its choices."""
    return [dict(zip(CHOICES, names, strict=True)) for names in itertools.product(*CHOICES.values())]


def few() -> list[dict[str, str]]:
    """Some of them, in which every two choices meet."""
    found: list[dict[str, str]] = []
    met: set[tuple[tuple[str, str], ...]] = set()

    def pairs(combination: dict[str, str]) -> set[tuple[tuple[str, str], ...]]:
        return set(itertools.combinations(combination.items(), 2))

    while left := set().union(*map(pairs, combinations())) - met:
        found.append(max(combinations(), key=lambda combination: len(pairs(combination) & left)))
        met |= pairs(found[-1])
    return found


#: By name, the combinations that a launch trains.
SETS = {"few": few, "all": combinations}


def title(combination: dict[str, str]) -> str:
    """Its name, as a file's."""
    return ", ".join(f"{key} {name}" for key, name in combination.items())


def config_of(combination: dict[str, str], plain: Config) -> Config:
    """``plain`` with the combination's choices."""
    config = copy.deepcopy(plain)
    for key, name in combination.items():
        for option, value in CHOICES[key][name].items():
            section, _, field = option.partition(".")
            setattr(getattr(config, section), field, value)
    return config


def main() -> None:
    """Train them one after the other."""
    shards, out = Path(sys.argv[1]), Path(sys.argv[2])
    # The wrapper is real, and so is what DistributedDataParallel makes of it; a compiler would take minutes.
    torch.compiler.set_stance("force_eager")
    manifest = Manifest.read(shards)
    readers = [ShardReader.of_split(shards, split, manifest) for split in ("train", "val")]
    accelerator, plain = make_accelerator("no"), tiny_config(*OPTIONS)
    for combination in SETS[sys.argv[3]]():
        config = config_of(combination, plain)
        samples, rest = train_plan(config, readers[0]).num_samples, int(combination["left over"])
        config.train.batch_size = next(b for b in range(9, samples) if samples % b == rest)
        folder = out / title(combination)
        setup = build_setup(accelerator, config, manifest, readers, folder, None)
        trainer = Bare(setup)
        assert trainer.run()
        if accelerator.is_main_process:
            found = {
                "weights": trainer.train_step.plain_model.state_dict(),
                "losses": [float(row["loss"]) for row in rows(folder / "log.csv")],
                "train_loss": trainer.train_losses,
            }
            torch.save(found, out / f"{title(combination)}.pt")


def rows(path: Path) -> list[dict[str, str]]:
    """Of a CSV."""
    with open(path) as stream:
        return list(csv.DictReader(stream))


if __name__ == "__main__":
    main()
