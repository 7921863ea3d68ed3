"""The study's rows: the reference, then one change at a time, then the best recipe and what it is without each part."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """One row of the table."""

    name: str
    config: str
    """File in configs/."""
    overrides: tuple[str, ...] = ()
    start: str = ""
    """Name of the recipe whose trained model, with its head, this one starts from. "" is the weights of --weights."""


def recipes(fine_tune: bool = False) -> list[Recipe]:
    """All rows. ``fine_tune`` adds those whose backbone learns."""
    # The reference recipe's own head, loss, optimiser, crops and stopping. Its backbone does not learn here, as
    # nobody's does; it takes four passes over the posters, the best recipe one at twice the pixels.
    cached = ("--model.freeze=[backbone]", "--train.feature_views=4")
    plain = ("--decide.thresholds=global", "--decide.calibration=none")
    probe, best = "linear_probe.yaml", "poster_resnet50_best.yaml"
    found = [
        Recipe("reference", "poster_resnet50.yaml", (*cached, *plain)),
        Recipe("reference, decisions per genre", "poster_resnet50.yaml", cached),
        Recipe("linear probe", probe),
        Recipe("probe, weighted BCE", probe, ("--loss.name=weighted",)),
        Recipe("probe, focal", probe, ("--loss.name=focal",)),
        Recipe("probe, asymmetric", probe, ("--loss.name=asl",)),
        Recipe("probe, distribution-balanced", probe, ("--loss.name=balanced",)),
        Recipe("probe, label smoothing 0.1", probe, ("--loss.smoothing=0.1",)),
        Recipe("probe, genre-aware sampling", probe, ("--data.sampling=genre",)),
        Recipe("best", best),
        Recipe("best, linear", best, ("--model.head=levels", "--optim.weight_decay=30", "--train.epochs=40")),
        Recipe("best, one member", best, ("--model.members=1", "--train.epochs=20")),
        Recipe("best, 224 pixels", best, ("--data.image_size=224",)),
        Recipe("best, central crop", best, ("--data.fit=crop",)),
        Recipe("best, random crops", best, ("--data.crop_scale=[0.35,1.0]", "--data.crop_ratio=[0.75,1.3333333]")),
        Recipe("best, no decay", best, ("--optim.weight_decay=0",)),
        Recipe("best, no prior", best, ("--model.prior=false",)),
        Recipe("best, not standardised", best, ("--train.standardize=false",)),
        Recipe("best, no moving average", best, ("--train.ema=0",)),
        Recipe("best, distribution-balanced", best, ("--loss.name=balanced",)),
        Recipe("best, label smoothing 0.1", best, ("--loss.smoothing=0.1",)),
    ]
    if fine_tune:
        # Chosen on validation posters: docs/results/recipes.md, "Fine-tuning".
        tuned = (
            "--data.image_size=224",
            "--model.freeze=[stem]",
            "--train.feature_views=0",
            "--train.standardize=false",
            "--data.train_crop=random",
            "--data.crop_scale=[0.6,1.0]",
            "--data.crop_ratio=[0.6,0.8]",
            "--optim.lr=0.0001",
            "--optim.layer_decay=0.75",
            "--optim.weight_decay=0.05",
            "--optim.warmup_steps=50",
            "--train.batch_size=32",
            "--train.epochs=4",
            "--train.ema=0.98",
            "--train.monitor=mAP",
        )
        found += [
            Recipe("reference, fine-tuned", "poster_resnet50.yaml", (*plain, "--train.epochs=4")),
            Recipe("best, fine-tuned", best, tuned, start="best, 224 pixels"),
        ]
    return found
