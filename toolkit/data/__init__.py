"""Read samples of shards, in the order of a plan, and produce batches of pixels. ShardLoader is for any program."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from toolkit.data.image_transforms import EvalTransform, TrainTransform
    from toolkit.data.shard_batch import ShardBatch
    from toolkit.data.shard_loader import ShardLoader

__all__ = ["EvalTransform", "ShardBatch", "ShardLoader", "TrainTransform"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        import toolkit

        return getattr(toolkit, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
