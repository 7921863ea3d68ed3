"""Transformers' image-classification pipeline on the same model (its timm wrapper reads our folder) and files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from protocol import Stack, Task, serve
from transformers import pipeline

DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def prepare(task: Task) -> Stack:
    """Batches, half precision and channels_last as ours; all labels, by sigmoid."""
    classify = pipeline(
        "image-classification",
        model=task.model,
        dtype=DTYPES[task.precision],
        device="cuda" if torch.cuda.is_available() else "cpu",
        function_to_apply="sigmoid",
    )
    classify.model.to(memory_format=torch.channels_last)
    files = sorted(str(path) for path in Path(task.files).glob("*.jpg"))

    def epoch(number: int) -> Iterator[int]:
        # a list, so that the pipeline batches; its workers decode
        answers = classify(files, batch_size=task.batch, num_workers=task.cores, top_k=None)
        assert len(answers) == len(files)
        yield len(answers)

    return Stack(epoch, "Python lists", ("transformers", "torch", "timm", "pillow"))


if __name__ == "__main__":
    serve(prepare)
