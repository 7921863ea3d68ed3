"""timm's inference.py on a folder of images. Its wheel lacks the script: the same calls, in the script's order.

create_dataset and create_loader (a worker per core, prefetching and normalising on the device), the model in
channels_last under autocast, sigmoid, a DataFrame, a CSV file.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import timm
import torch
from protocol import Stack, Task, serve
from timm.data import create_dataset, create_loader, resolve_data_config

DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def prepare(task: Task) -> Stack:
    """The model folder is in timm's hub format."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = timm.create_model(f"local-dir:{task.model}", pretrained=True).to(device).eval()
    model = model.to(memory_format=torch.channels_last)
    config = resolve_data_config({}, model=model)
    dtype = DTYPES[task.precision]
    workers = task.cores

    def epoch(number: int) -> Iterator[int]:
        dataset = create_dataset("", root=task.files)
        loader = create_loader(
            dataset, batch_size=task.batch, use_prefetcher=True, num_workers=workers, device=device, **config
        )
        outputs = []
        with torch.inference_mode():
            for images, _ in loader:
                images = images.contiguous(memory_format=torch.channels_last)
                with torch.autocast(device.type, dtype, enabled=dtype is not torch.float32):
                    outputs.append(model(images).float().sigmoid().cpu().numpy())
        frame = pd.DataFrame(np.concatenate(outputs))
        frame.insert(0, "filename", dataset.filenames(basename=True))
        Path(task.cache).mkdir(parents=True, exist_ok=True)
        frame.to_csv(Path(task.cache) / "predictions.csv")
        yield len(frame)

    return Stack(epoch, "CSV", ("timm", "torch", "torchvision", "pillow"))


if __name__ == "__main__":
    serve(prepare)
