"""Read untrusted torch.save files. They may contain tensors, plain values, and objects of a few classes (ALLOWED).

A pickle is a program that can call every function that can be imported. torch's restricted unpickler (``weights_only``)
calls only the functions in a list. Functions of scikit-learn and numpy do not check their arguments. The classes below
therefore replace these functions and only store the arguments. `to_array` checks and converts the arguments later. The
files may come from any version of numpy and scikit-learn.
"""

from __future__ import annotations

import logging
import pickle
import pickletools
import re
import warnings
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch.serialization import safe_globals

from shards.errors import UserError, one_line, some
from toolkit.device.compat import names_that_torch_allows
from toolkit.models.tensor_files import HEAD_BYTES, kind_of_content

log = logging.getLogger(__name__)

#: Codes of the allowed numpy types: a letter and the bytes per item, or U (text) and the number of characters.
NUMBERS = re.compile(r"[fiu][1248]|b1|U\d{1,4}")
#: Limits of one pickle: bytes, instructions and tuples. A checkpoint of 6,000 tensors has 0.6 MB, 150,000 instructions
#: and 25,000 tuples. Tuples have a limit because Python crashes when it hashes a tuple with 1,000,000 nested levels.
MAX_PICKLE, MAX_INSTRUCTIONS, MAX_TUPLES = 8 * 2**20, 500_000, 75_000
ZIP, GZIP, ZLIB = b"PK\x03\x04", b"\x1f\x8b", (b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda")


class PickledObject:
    """The stored attributes of an object of an allowed class. The object itself is not created."""

    state: Any

    def __new__(cls, *_: Any) -> PickledObject:
        made = super().__new__(cls)
        made.state = {}
        return made

    def __setstate__(self, state: Any) -> None:
        self.state = state


class PickledBinarizer(PickledObject):
    """The attributes of scikit-learn's MultiLabelBinarizer."""


class PickledNamespace(PickledObject):
    """The attributes of an ``argparse.Namespace``, such as the options in a checkpoint of timm's train.py."""


class PickledArray(PickledObject):
    """A numpy array. ``state``: version, shape, dtype, bool (true for Fortran order), items (list or bytes)."""


class PickledDtype(PickledObject):
    """The code of a numpy dtype."""

    def __init__(self, code: Any = "", *_: Any) -> None:
        self.code = code


class PickledScalar(PickledObject):
    """The dtype and the bytes of a numpy scalar."""

    def __init__(self, dtype: Any = None, data: Any = None, *_: Any) -> None:
        self.dtype, self.data = dtype, data


def _defaultdict(*_: Any) -> dict[Any, Any]:
    return {}


def _factory(*_: Any) -> None:
    """Replacement of the default factory of a defaultdict. It is never called."""


#: Allowed names and their replacements. Names on torch's own list are allowed, too. A class may have several names,
#: because its module path differs between versions of a package.
ALLOWED: dict[str, Any] = {
    "sklearn.preprocessing._label.MultiLabelBinarizer": PickledBinarizer,
    "sklearn.preprocessing.label.MultiLabelBinarizer": PickledBinarizer,
    "argparse.Namespace": PickledNamespace,
    "numpy.core.multiarray._reconstruct": PickledArray,
    "numpy._core.multiarray._reconstruct": PickledArray,
    "numpy.ndarray": PickledArray,
    "numpy.dtype": PickledDtype,
    "numpy.core.multiarray.scalar": PickledScalar,
    "numpy._core.multiarray.scalar": PickledScalar,
    "collections.defaultdict": _defaultdict,
    "builtins.dict": _factory,
    "builtins.list": _factory,
    "builtins.int": _factory,
    "builtins.float": _factory,
}


def safe_load(path: Path, what: str) -> Any:
    """Return the content of a torch.save file without executing code. Numpy arrays become `PickledArray` objects.

    ``what``: the expected kind of file, for errors, e.g. ``"checkpoint"``. Raises UserError if the file
    imports a name that is not allowed, or if torch cannot read it.
    """
    if not path.is_file():
        raise UserError("path-missing", f"checkpoint not found: {path}")
    with open(path, "rb") as stream:
        head = stream.read(HEAD_BYTES)
    if head.startswith((GZIP, *ZLIB)):
        raise UserError(
            "path-unreadable", f"{path} is compressed, for example by joblib: use the .pth file that torch.save wrote"
        )
    zipped = zipfile.is_zipfile(path)
    pickled = zipped or head.startswith(b"\x80")
    if head.startswith(ZIP) and not zipped:
        raise UserError("path-unreadable", f"{path} is truncated: copy it again")
    if not pickled and (other := kind_of_content(head)):
        raise UserError("path-unreadable", f"{path} is no {what}, but {other}")
    if zipped:
        _check_archive(path)
    foreign = sorted(names_in(path, zipped) - ALLOWED.keys() - names_that_torch_allows())
    if foreign:
        raise UserError("weights-refused", _refusal(path, foreign, what))
    try:
        with safe_globals([(stand_in, name) for name, stand_in in ALLOWED.items()]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # `names_in` does not run the pickle, so it may miss a name in a crafted file. torch finds such a name here.
        found = re.search(r"GLOBAL (\S+) (?:was not|whose module)", str(error))
        if found:
            raise UserError("weights-refused", _refusal(path, [found[1]], what)) from None
        newer = re.search(r"Unsupported operand (\d+)", str(error))
        if newer and pickled:
            raise UserError(
                "path-unreadable",
                f"{path} cannot be read: it was pickled with a newer protocol (instruction {newer[1]}). Save it again "
                f"by torch.save without pickle_protocol",
            ) from None
        raise UserError("path-unreadable", _not_torch(path)) from None
    except Exception as error:  # damaged archives and tensors raise almost any type
        raise UserError("path-unreadable", f"{_not_torch(path)} ({type(error).__name__})") from None


def names_in(path: Path, zipped: bool) -> set[str]:
    """Return ``module.name`` of all imports in a torch file (``zipped`` or legacy) or in a plain pickle.

    Nothing is executed. Names that cannot be determined are left out. torch.load refuses them later.
    """
    names: set[str] = set()
    try:
        if zipped:
            with zipfile.ZipFile(path) as archive:
                for entry in archive.namelist():
                    if entry.endswith(".pkl"):
                        with archive.open(entry) as stream:
                            _collect_imports(stream, names)
        else:
            with open(path, "rb") as stream:
                for _ in range(5):  # pickles of a legacy file: magic number, protocol, system, object, keys of storages
                    _collect_imports(stream, names)
    except TooMuch as error:
        problem = f"{path} is refused: {error}. Use a .safetensors file of the weights, which has no such limits"
        raise UserError("weights-refused", problem) from None
    except Exception as error:  # torch.load reports files that are not pickles
        log.debug("%s: %s", path, error)
    return names


def _check_archive(path: Path) -> None:
    """Raise UserError for a zip archive that torch.save never writes, for example with compressed members."""
    problem = None
    try:
        with open(path, "rb") as stream:
            size = stream.seek(0, 2)
            stream.seek(max(0, size - 2**16))
            tail = stream.read()
        at = tail.rfind(b"PK\x05\x06")
        directory = int.from_bytes(tail[at + 12 : at + 16], "little")
        if directory == 0xFFFFFFFF:
            at = tail.rfind(b"PK\x06\x06")
            directory = int.from_bytes(tail[at + 40 : at + 48], "little")
        if directory > MAX_PICKLE:
            problem = f"its zip directory has {directory} bytes, over the limit of {MAX_PICKLE}"
        else:
            with zipfile.ZipFile(path) as archive:
                parts = archive.infolist()
            pickles = sum(part.file_size for part in parts if part.filename.endswith(".pkl"))
            if pickles > MAX_PICKLE:
                problem = f"its pickles have {pickles} bytes, over the limit of {MAX_PICKLE}"
            elif any(part.compress_type != zipfile.ZIP_STORED for part in parts):
                problem = "its members are compressed, which torch.save does not do: save it again by torch.save"
            elif sum(part.file_size for part in parts) > size:
                problem = "its members are larger than the file"
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError) as error:
        raise UserError("path-unreadable", f"{_not_torch(path)} ({one_line(error)})") from None
    if problem is not None:
        raise UserError("weights-refused", f"{path} is refused: {problem}")


class TooMuch(Exception):
    """Raised for a pickle that is over a limit."""


def _collect_imports(stream: IO[bytes], names: set[str]) -> None:
    """Add the imports of one pickle to ``names``. Raises TooMuch if the pickle is over a limit.

    In protocol 4, the last two strings before an import are its module and its name. Strings can come from the memo.
    """
    strings: list[str] = []
    memo: dict[int, str] = {}
    last = ""  # string pushed by the last instruction, or empty
    tuples = 0
    for count, (opcode, argument, place) in enumerate(pickletools.genops(stream)):
        tuples += opcode.name.startswith("TUPLE")
        if count > MAX_INSTRUCTIONS or tuples > MAX_TUPLES or (place or 0) > MAX_PICKLE:
            raise TooMuch(
                f"besides tensors it has over {MAX_INSTRUCTIONS} values, {MAX_TUPLES} tuples or {MAX_PICKLE} bytes"
            )
        if opcode.name == "FRAME":
            continue
        pushed = ""
        if opcode.name in ("GLOBAL", "INST"):
            names.add(_python3_name(str(argument).replace(" ", ".")))
        elif opcode.name == "STACK_GLOBAL":
            names.add(_python3_name(".".join(strings[-2:])))
        elif isinstance(argument, str):
            pushed = argument
        elif opcode.name == "MEMOIZE":
            memo[len(memo)] = last
        elif opcode.name in ("BINGET", "LONG_BINGET") and isinstance(argument, int):
            pushed = memo.get(argument, "")
        if pushed:
            strings.append(pushed)
        last = pushed


def _python3_name(name: str) -> str:
    return name.replace("__builtin__.", "builtins.", 1)  # Python 2 and protocol 2 write __builtin__


def _refusal(path: Path, names: list[str], what: str) -> str:
    return f"{path} is refused: it contains {some(names)}, which no {what} has. None of its code was executed"


def _not_torch(path: Path) -> str:
    return f"{path} cannot be read: it is damaged, or was not written by torch.save"


def to_array(value: Any) -> np.ndarray:
    """Convert a `PickledArray`, a tensor, or a list of numbers or strings to a numpy array. Else raise ValueError.

    The items of an object array are not checked. The caller must check them.
    """
    if isinstance(value, torch.Tensor):
        if value.layout != torch.strided or value.device.type != "cpu" or value.numel() > MAX_INSTRUCTIONS:
            raise ValueError(f"not a plain tensor of at most {MAX_INSTRUCTIONS} numbers")
        return value.detach().float().numpy()
    if isinstance(value, (list, tuple)):
        return np.array([to_number(item) for item in value])
    if not isinstance(value, PickledArray):
        raise ValueError(f"not an array: {type(value).__name__}")
    try:
        _, shape, dtype, fortran, data = value.state
        code = dtype.code
        count = int(np.prod(shape, dtype=np.int64))
    except (AttributeError, TypeError, ValueError, OverflowError):
        raise ValueError("not an array that numpy wrote") from None
    if isinstance(code, str) and code.startswith("O") and isinstance(data, list):
        if len(data) != count:
            raise ValueError(f"an array of shape {shape} with {len(data)} items")
        objects = np.empty(count, dtype=object)
        objects[:] = data
        return objects.reshape(shape, order="F" if fortran else "C")
    return np.frombuffer(_bytes(data), _number_type(dtype)).reshape(shape, order="F" if fortran else "C")


def to_number(value: Any) -> Any:
    """Return a number, string, numpy scalar or one-element tensor as a Python value. Else raise ValueError."""
    if isinstance(value, PickledScalar):
        return np.frombuffer(_bytes(value.data), _number_type(value.dtype)).reshape(1)[0].item()
    if isinstance(value, (str, int, float)):
        return value
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        return value.item()
    raise ValueError(f"not a number or string: {type(value).__name__}")


def _number_type(dtype: Any) -> np.dtype[Any]:
    code = getattr(dtype, "code", None)
    if not isinstance(code, str) or not NUMBERS.fullmatch(code):
        raise ValueError(f"an array of type {code!r}")
    order = dtype.state[1] if isinstance(dtype.state, tuple) and len(dtype.state) > 1 else "="
    return np.dtype(code).newbyteorder(">" if order == ">" else "<" if order == "<" else "=")


def _bytes(data: Any) -> bytes:
    """Return stored bytes. Old pickles store them as Latin-1 text."""
    if not isinstance(data, (str, bytes, bytearray)):
        raise ValueError(f"not bytes: {type(data).__name__}")
    return data.encode("latin-1") if isinstance(data, str) else bytes(data)
