"""Checkpoints as the earlier training script wrote them, made with real scikit-learn and torchvision."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from sklearn.preprocessing import MultiLabelBinarizer
from torch import nn

GENRES = ("Comedy", "Drama", "War")


class Script(nn.Module):
    """The script's module: torchvision's network under the name ``model``."""

    def __init__(
        self, name: str = "resnet18", hidden: Sequence[int] = (), classes: int = len(GENRES), thresholds: bool = False
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = getattr(torchvision.models, name)(weights=None)
        width = self.model.fc.in_features
        layers: list[nn.Module] = []
        for size in hidden:
            layers += [nn.Dropout(0.5), nn.Linear(width, size), nn.ReLU()]
            width = size
        last = nn.Linear(width, classes)
        with torch.no_grad():
            last.weight *= 0.1  # random networks have large features; probabilities of 0 and 1 would all look alike
        self.model.fc = nn.Sequential(*layers, nn.Dropout(0.5), last) if hidden else last
        if thresholds:
            self.threshold_logits = nn.Parameter(torch.linspace(-1, 1, classes))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model(images)


def binarizer(genres: Sequence[Any] = GENRES) -> MultiLabelBinarizer:
    """Fitted and used, so that it has its cache."""
    fitted = MultiLabelBinarizer()
    fitted.fit([[genre] for genre in genres])
    fitted.transform([[genres[0]]])
    return fitted


def content(network: Script, **changes: Any) -> dict[str, Any]:
    """What the script saves."""
    parameters = [p for p in network.parameters() if p.requires_grad][-2:]
    optimizer = torch.optim.AdamW(parameters, lr=1e-9)
    sum(p.sum() for p in parameters).backward()  # type: ignore[union-attr]
    optimizer.step()
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    return {
        "epoch": 7,
        "model_state_dict": network.state_dict(),
        "optimizer_state_dict": optimizer.state_dict(),
        "scheduler_state_dict": schedule.state_dict(),
        "scaler_state_dict": torch.amp.GradScaler("cpu").state_dict(),
        "mlb": binarizer(),
        "num_classes": len(GENRES),
        "config": {"image_size": (64, 64), "fixed_threshold": 0.5, "lr": 1e-4, "name": "BCE"},
        "train_loss": 0.3,
        "val_loss": np.float64(0.4),
        "train_losses": [0.5, 0.3],
        "val_losses": [np.float64(0.6), np.float64(0.4)],
        "learned_thresholds": None,
        "learn_thresholds": False,
        **changes,
    }


def rename_in_pickle(path: Path, *names: tuple[bytes, bytes]) -> None:
    """Rewrite the names that a torch.save zip imports, as another version of a package would have written them."""
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in entries.items():
            if name.endswith("data.pkl"):
                for old, new in names:
                    assert b"c" + old + b"\n" in data, old
                    data = data.replace(b"c" + old + b"\n", b"c" + new + b"\n")
            archive.writestr(name, data)
