"""Read and check tensors of untrusted files. A .safetensors header is checked before any tensor is created."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from shards.errors import UserError, one_line
from shards.schema import Count, check_as, parse_as

#: Largest header in bytes. A tensor needs about 100 bytes. The format allows 100 MB, which is a million tensors.
MAX_HEADER = 8 * 2**20
WHAT = "safetensors file"
#: Name endings of tensors with weights or statistics. Other tensors may be counters, for example num_batches_tracked.
LEARNT_ENDINGS = ("weight", "bias", "running_mean", "running_var")
REMEDY = "copy it again"
#: Prefixes in names of a state dict. DDP adds a prefix at the start, torch.compile one for every compiled module.
_WRAPPERS = re.compile(r"^(module\.|_orig_mod\.)+|(?<=\.)_orig_mod\.")

#: Number of bytes at the start of a file that `kind_of_content` needs.
HEAD_BYTES = 64
#: First bytes of a file → what the file is, and the remedy. The texts are in lower case, as in `kind_of_content`.
CONTENTS = {
    b"version https://git-lfs": "a Git LFS pointer and not the file itself: run `git lfs pull`",
    b"<": "an HTML or XML page, perhaps of an error or a login: download the file again",
    b"pk\x03\x04": "a zip archive, as torch.save writes it: rename it so that it ends with .pth",
    b"\x89hdf": "an HDF5 file, for example of Keras: save the weights by torch.save or as .safetensors",
    **dict.fromkeys(
        (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"), "a pickle: rename it so that it ends with .pth"
    ),
    **dict.fromkeys((b"{", b"["), "a text such as JSON: use the file with the weights"),
}
#: Second field of an ONNX file after its version, such as the name of the program.
ONNX_FIELDS = tuple(b"\x12\x1a\x22\x3a\x42")

Shape = tuple[int, ...]
V = TypeVar("V")


class Entry(msgspec.Struct):
    """Type and shape of a tensor in the header. safetensors itself checks the number of bytes."""

    dtype: str
    shape: list[Count]


def kind_of_content(head: bytes) -> str | None:
    """Return what a file is that is neither damaged nor expected, with a remedy, from its first HEAD_BYTES bytes.

    None if the kind is unknown.
    """
    if len(head) < 8:
        return f"a file of {len(head)} bytes: copy it again"
    if head[8:10] == b'{"' and int.from_bytes(head[:8], "little") <= 10**8:  # the largest header of the format
        return "a safetensors file: rename it so that it ends with .safetensors"
    if head[0] == 8 and 3 <= head[1] < 32 and head[2] in ONNX_FIELDS:
        return "an ONNX file, from which no network can be made: use the weights from which it was exported"
    start = head.lstrip().lower()
    return next((what for first, what in CONTENTS.items() if start.startswith(first)), None)


def plain_names(state: Mapping[str, V]) -> dict[str, V]:
    """Return a state dict without the name prefixes of wrappers.

    If two names become equal without prefixes, all names stay unchanged: the file belongs to another model.
    """
    plain = {_WRAPPERS.sub("", name): value for name, value in state.items()}
    return plain if len(plain) == len(state) else dict(state)


def without_prefix(state: Mapping[str, V], own: Collection[str]) -> dict[str, V]:
    """Return a state dict without a prefix such as ``model.`` that all names share, if the names are then ``own``.

    If no such prefix gives exactly the names in ``own``, all names stay unchanged.
    """
    longer = sum(map(len, state)) - sum(map(len, own))
    if len(state) == len(own) and longer > 0:
        end = longer // len(own)
        prefix = next(iter(state))[:end]
        shorter = {name[end:]: value for name, value in state.items()}
        if prefix.endswith(".") and all(name.startswith(prefix) for name in state) and shorter.keys() == set(own):
            return shorter
    return dict(state)


def prefix_note(own: Collection[str], found: Collection[str]) -> str:
    """Return the end of a message about a misfit. It names a prefix of the file's names that no own name has."""
    starts = Counter(name.partition(".")[0] + "." for name in found if "." in name)
    first, count = next(iter(starts.most_common(1)), ("", 0))
    if count * 2 <= len(found) or any(name.startswith(first) for name in own):
        return ""
    shared = f"{count} of its {len(found)} names begin" if count < len(found) else "all its names begin"
    return f", and {shared} with {first[:100]!r}: save the weights without this prefix, and without other weights"


def read_header(path: Path) -> dict[str, Entry]:
    """Return type and shape by tensor name, without wrapper prefixes. Raises UserError if the header is invalid."""
    try:
        with path.open("rb") as stream:
            start = stream.read(8)
            length = int.from_bytes(start, "little")
            head = stream.read(HEAD_BYTES)
            if not head.startswith(b"{") and (what := kind_of_content(start + head[: HEAD_BYTES - 8])):
                raise UserError("model-damaged", f"{path} is not a valid {WHAT}, but {what}")
            if length > MAX_HEADER:
                raise UserError(
                    "model-damaged",
                    f"{path} is not a valid {WHAT}: its header has {length} bytes, over the limit of {MAX_HEADER}; "
                    f"{REMEDY}, or save fewer and larger tensors",
                )
            data = (head + stream.read(max(0, length - len(head))))[:length]
    except OSError as error:
        raise UserError("path-unreadable", f"{path} cannot be read: {one_line(error)}") from None
    header: dict[str, Any] = parse_as(data, dict[str, Any], path, WHAT, REMEDY)
    header.pop("__metadata__", None)
    return plain_names(check_as(header, dict[str, Entry], path, WHAT, REMEDY))


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Load tensors by name, without wrapper prefixes. Call `read_header` first. Raises UserError for a damaged file."""
    try:
        return plain_names(load_file(path))
    except (SafetensorError, RuntimeError, ValueError, OSError) as error:
        raise UserError("model-damaged", f"{path} is not a valid {WHAT}: {one_line(error)[:300]}; {REMEDY}") from None


def misfit(own: Mapping[str, Shape], found: Mapping[str, Shape]) -> str | None:
    """Compare the tensors of a network with the tensors of a file. Return the first difference, or None."""
    missing = [name for name in own if name not in found]
    unexpected = [name for name in found if name not in own]
    shapes = [name for name in found if name in own and found[name] != own[name]]
    for what, names in (("lacks", missing), ("has unknown", unexpected), ("has other shapes for", shapes)):
        if names:
            return f"{what} {len(names)} tensors, e.g. {names[0][:200]!r}"
    return None


def shapes_of(state: Mapping[str, torch.Tensor]) -> dict[str, Shape]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def require_fit(header: Mapping[str, Entry], network: nn.Module, path: Path, of: object) -> None:
    """Raise UserError if a file does not have exactly the tensors of ``network``.

    The network may be on the device "meta". ``of``: the file or name that defines the network, for the error message.
    """
    own = network.state_dict()
    problem = misfit(shapes_of(own), {name: tuple(entry.shape) for name, entry in header.items()})
    of_other_types = (
        f"has {entry.dtype[:20]!r} numbers in {name!r}"
        for name, entry in header.items()
        if ("F" in entry.dtype) != own[name].is_floating_point()  # BF16, F16, F32, ... or I64, BOOL, ...
    )
    if problem := problem or next(of_other_types, None):
        raise UserError("model-damaged", f"{path} does not fit {of}: it {problem}; {REMEDY}")


def require_finite(state: Mapping[str, torch.Tensor], path: Path) -> None:
    """Raise UserError for a tensor with NaN or infinite values, negative variances, a wrong type, or no plain layout.

    Torch files can contain tensors without data (device "meta"), sparse tensors, and views that repeat one number a
    billion times. All such tensors are refused.
    """
    for name, tensor in state.items():
        shown = repr(name[:200])
        plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
        if not plain or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise UserError(
                "model-damaged",
                f"{path}: its tensor {shown} is not a plain array of numbers: save contiguous CPU tensors",
            )
        if not tensor.is_floating_point():
            if tensor.is_complex() or name.endswith(LEARNT_ENDINGS):
                raise UserError(
                    "model-damaged",
                    f"{path}: its tensor {shown} has type {str(tensor.dtype).removeprefix('torch.')}, but weights must "
                    f"be floating-point numbers: save them as float32 or float16",
                )
            continue
        bad = ~torch.isfinite(tensor)
        if bad.any():
            what = f"contains {int(bad.sum())} values that are not finite (of {tensor.numel()} values)"
        elif name.endswith("running_var") and (tensor < 0).any():
            what = "contains variances below 0, whose roots are not finite"
        else:
            continue
        raise UserError(
            "not-finite",
            f"{path}: its tensor {shown} {what}: the training had diverged, or the file was changed. Use other "
            f"weights, or train again",
        )
