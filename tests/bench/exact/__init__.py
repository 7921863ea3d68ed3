"""The stacks that exactness.py compares, one module for each family. Ours comes first.

A module imports its library within functions: the table of all stacks is read where most of them are not installed.
"""

from exact import (
    accelerate_loader,
    energon,
    grain_loader,
    huggingface,
    litdata_chunks,
    mosaic_mds,
    ours,
    timm_reader,
    torchdata_loader,
    wds,
)
from exact.stack import Stack

STACKS: dict[str, Stack] = {
    **ours.STACKS,
    **mosaic_mds.STACKS,
    **litdata_chunks.STACKS,
    **grain_loader.STACKS,
    **energon.STACKS,
    **torchdata_loader.STACKS,
    **huggingface.STACKS,
    **accelerate_loader.STACKS,
    **wds.STACKS,
    **timm_reader.STACKS,
}
