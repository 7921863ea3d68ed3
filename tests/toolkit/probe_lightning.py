"""What Lightning does with a ShardLoader, for docs/guides/loader-adaptors.md. Writes facts.json."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint

import toolkit


class Probe(lightning.LightningModule):
    """A layer that sees the mean colour of each image."""

    def __init__(self, *, fail_at: int = -1, accumulation: int = 1) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 1)
        torch.nn.init.zeros_(self.layer.weight)
        self.fail_at, self.accumulation = fail_at, accumulation
        self.seen: list[tuple[int, int]] = []

    def train_dataloader(self) -> toolkit.ShardLoader:
        transform, accumulation = toolkit.EvalTransform(image_size=32), self.accumulation
        return toolkit.ShardLoader(
            "SHARDS", split="train", batch_size=10, transform=transform, accumulation=accumulation
        )

    def training_step(self, batch: toolkit.ShardBatch, number: int) -> torch.Tensor:
        if number == self.fail_at:
            raise RuntimeError("an error in an update")
        self.seen.append((batch.epoch, batch.step))
        losses = self.layer(batch.images.float().mean((2, 3)) / 255).mean(dim=1)
        return (losses * batch.valid).sum() * self.accumulation / batch.samples

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1.0)


def fit(probe: Probe, checkpoint: str | None = None, callbacks: list[Any] | None = None, **options: Any) -> Probe:
    trainer = lightning.Trainer(
        accelerator="cpu", devices=1, logger=False, callbacks=callbacks or [], enable_progress_bar=False,
        enable_model_summary=False, **options,
    )  # fmt: skip
    with contextlib.suppress(RuntimeError):
        trainer.fit(probe, ckpt_path=checkpoint)
    return probe


def main() -> None:
    one: dict[str, Any] = {"max_epochs": 1}
    two: dict[str, Any] = {"max_epochs": 2}
    failed = fit(Probe(fail_at=3), callbacks=[OnExceptionCheckpoint("."), ModelCheckpoint("unused")], **one)
    fit(Probe(), callbacks=[ModelCheckpoint("states", filename="epoch")], **one)
    fit(Probe(), callbacks=[ModelCheckpoint("states", filename="step", every_n_train_steps=6)], **one)
    facts = {
        "before an error": failed.seen,
        "after its checkpoint": fit(Probe(), "on_exception.ckpt", **one).seen,
        "after the checkpoint of an epoch": fit(Probe(), "states/epoch.ckpt", **two).seen,
        "after the checkpoint of the last update of an epoch": fit(Probe(), "states/step.ckpt", **two).seen,
        "limited": fit(Probe(), limit_train_batches=2, **two).seen,
        "new loaders": fit(Probe(), reload_dataloaders_every_n_epochs=1, **two).seen,
        "weights with accumulation 1 and 3": [
            float(fit(Probe(accumulation=k), max_steps=2, accumulate_grad_batches=k).layer.weight[0, 0].detach())
            for k in (1, 3)
        ],
    }
    with open("facts.json", "w") as stream:
        json.dump(facts, stream)


if __name__ == "__main__":
    main()
