"""Checkpoints are read without executing anything; what does not belong in them is refused by its name."""

from __future__ import annotations

import collections
import os
import pickle
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import torch
from failing import fails
from import_tools import binarizer, rename_in_pickle
from safetensors.torch import save_file

from shards.errors import UserError
from toolkit.export.import_model import read_model
from toolkit.export.options import ImportOptions
from toolkit.models.safe_unpickle import (
    ALLOWED,
    PickledArray,
    PickledBinarizer,
    PickledDtype,
    PickledScalar,
    safe_load,
    to_array,
    to_number,
)
from toolkit.models.tensor_files import read_header

WHAT = "checkpoint of that script"


def load(path: Path) -> Any:
    return safe_load(path, WHAT)


def zipped(value: Any, path: Path) -> None:
    torch.save(value, path)


def legacy(value: Any, path: Path) -> None:
    torch.save(value, path, _use_new_zipfile_serialization=False)


def newest(value: Any, path: Path) -> None:
    torch.save(value, path, pickle_protocol=5)


def plain(value: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(value))


def by_joblib(value: Any, path: Path) -> None:
    joblib.dump(value, path)


class Runs:
    """Unpickled by pickle, it calls something."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


@pytest.mark.parametrize("write", [zipped, legacy])
def test_what_belongs_is_read(tmp_path: Path, write: Callable[[Any, Path], None]):
    path = tmp_path / "c.pth"
    value = {
        "mlb": binarizer(),
        "weights": torch.arange(3.0),
        "floats": np.array([0.25, 0.5]),
        "strings": np.array(["x", "yy"]),
        "fortran": np.arange(6).reshape(2, 3).T,
        "scalar": np.float32(0.75),
        "counts": collections.defaultdict(list, {"a": [1]}),
        "set": {1, 2},
        "ordered": collections.OrderedDict(a=1),
        "plain": [None, True, "text", 1.5, b"bytes"],
    }
    write(value, path)
    found = load(path)
    assert isinstance(found["mlb"], PickledBinarizer)
    assert to_array(found["mlb"].state["classes_"]).tolist() == ["Comedy", "Drama", "War"]
    assert torch.equal(found["weights"], value["weights"])
    for name in ("floats", "strings", "fortran"):
        assert isinstance(found[name], PickledArray)
        np.testing.assert_array_equal(to_array(found[name]), value[name])
    assert to_number(found["scalar"]) == 0.75
    assert found["counts"] == {"a": [1]} and found["set"] == {1, 2} and found["plain"] == value["plain"]


def test_names_of_other_versions_of_numpy_and_scikit_learn(tmp_path: Path):
    path = tmp_path / "c.pth"
    torch.save({"mlb": binarizer(), "a": np.array([0.5]), "s": np.float64(0.25)}, path)
    rename_in_pickle(
        path,
        (b"sklearn.preprocessing._label", b"sklearn.preprocessing.label"),
        (b"numpy._core.multiarray", b"numpy.core.multiarray"),
    )
    found = load(path)
    assert to_array(found["mlb"].state["classes_"]).tolist() == ["Comedy", "Drama", "War"]
    assert to_array(found["a"]).tolist() == [0.5] and to_number(found["s"]) == 0.25


def test_real_numpy_and_scikit_learn_are_never_called():
    for name, stand_in in ALLOWED.items():
        assert getattr(stand_in, "__module__", "").startswith(("toolkit.", "builtins")), name


@pytest.mark.parametrize("write", [zipped, legacy, newest, plain, by_joblib])
@pytest.mark.parametrize(
    ("function", "name"),
    [(os.system, f"{os.name}.system"), (eval, "builtins.eval"), (exec, "builtins.exec")],
    ids=["system", "eval", "exec"],
)
@pytest.mark.parametrize("nested", [False, True], ids=["bare", "in_mlb"])
def test_a_program_is_refused_by_name_and_does_not_run(
    tmp_path: Path, write: Callable[[Any, Path], None], function: Any, name: str, nested: bool
):
    canary, path = tmp_path / "canary", tmp_path / "c.pth"
    code = f"touch {canary}" if function is os.system else f"open({str(canary)!r}, 'w')"
    evil: Any = Runs(function, code)
    if nested:
        evil = binarizer()
        evil.classes_ = np.array([Runs(function, code), "b"], dtype=object)
    write({"model_state_dict": {}, "mlb": evil}, path)
    with fails("weights-refused", path, name, WHAT):
        load(path)
    assert not canary.exists()
    if write in (plain, by_joblib):  # the canary sings where nobody looks
        with open(path, "rb") as stream:
            (pickle.load if write is plain else joblib.load)(stream)
        assert canary.exists()


@pytest.mark.parametrize("name", [b"sys\nmodules", b"numpy\nload", b"torch\nload", b"builtins\ngetattr"])
def test_other_names_are_refused_too(tmp_path: Path, name: bytes):
    path = tmp_path / "c.pth"
    torch.save({"a": np.float64(1.0)}, path)
    rename_in_pickle(path, (b"numpy._core.multiarray\nscalar", name))
    with fails("weights-refused", name.decode().replace("\n", ".")):
        load(path)


def test_the_loader_refuses_what_the_list_of_names_overlooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("toolkit.models.safe_unpickle.names_in", lambda path, zipped: set())
    canary, path = tmp_path / "canary", tmp_path / "c.pth"
    for function, shown in ((os.system, f"{os.name}.system"), (eval, "eval")):
        torch.save({"a": Runs(function, f"touch {canary}")}, path)
        with fails("weights-refused", shown):
            load(path)
    assert not canary.exists()


def test_damage_is_one_line(tmp_path: Path):
    path = tmp_path / "c.pth"
    torch.save({"mlb": binarizer(), "w": torch.ones(1000)}, path)
    whole = path.read_bytes()
    for content in (b"", b"x", whole[:100], whole[: len(whole) // 2], whole[:-30], b"PK\x03\x04", b"\x80\x02"):
        path.write_bytes(content)
        with fails("path-unreadable", path):
            load(path)


def test_other_files_are_named_for_what_they_are(tmp_path: Path):
    path = tmp_path / "c.pth"
    joblib.dump({"a": 1}, path, compress=3)
    with fails("path-unreadable", path, "joblib"):
        load(path)
    newest({"mlb": binarizer().classes_.tolist(), "other": {"a": 1}}, path)
    with fails("path-unreadable", path, "pickle_protocol"):
        load(path)
    plain({"a": 1}, path)
    with fails("path-unreadable", path):
        load(path)
    with fails("path-missing", tmp_path / "none.pth"):
        load(tmp_path / "none.pth")


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1\nsize 9\n"


def test_files_that_are_no_pickles_are_named_for_what_they_are(tmp_path: Path):
    path, header = tmp_path / "c.pth", tmp_path / "c.safetensors"
    onnx = b"\x08\x08\x12\x07pytorch\x1a\x052.5.0" + b"\0" * 100
    facts = {
        POINTER: "a Git LFS pointer and not the file itself",
        b"<!DOCTYPE html><html><body>Not found</body></html>": "an HTML or XML page",
        b"\n<HTML>" + b" " * 100: "an HTML or XML page",
        onnx: "an ONNX file",
        b"x": "a file of 1 bytes: copy it again",
        b"": "a file of 0 bytes: copy it again",
        b'{"error": "Repository not found"}': "a text such as JSON",
        b"\x89HDF\r\n\x1a\n" + b"\0" * 100: "an HDF5 file",
    }
    for content, fact in facts.items():
        path.write_bytes(content)
        with fails("path-unreadable", f"{path} is no {WHAT}, but {fact}"):
            load(path)
        header.write_bytes(content)
        with fails("model-damaged", f"{header} is not a valid safetensors file, but {fact}"):
            read_header(header)
    save_file({"w": torch.ones(3)}, path)
    with fails("path-unreadable", path, "a safetensors file: rename it so that it ends with .safetensors"):
        load(path)
    for write, fact in ((zipped, "a zip archive, as torch.save writes it"), (legacy, "a pickle"), (plain, "a pickle")):
        write({"w": torch.ones(3)}, header)
        with fails("model-damaged", header, f"but {fact}: rename it so that it ends with .pth"):
            read_header(header)
    path.write_bytes(b"something else, of a kind that nobody knows")
    with fails("path-unreadable", path, "is damaged, or was not written by torch.save") as caught:
        load(path)
    assert "protocol" not in str(caught.value)


def test_arrays_that_lie_about_themselves_are_not_read():
    def array(*state: Any) -> PickledArray:
        made = PickledArray()
        made.state = state
        return made

    from toolkit.models.safe_unpickle import PickledDtype

    floats, objects, odd = PickledDtype("f8"), PickledDtype("O8"), PickledDtype("V8")
    for bad in (
        array(1, (3,), floats, False, b"\0" * 8),
        array(1, (2,), objects, False, ["a"]),
        array(1, (10**12,), floats, False, b""),
        array(1, (1,), odd, False, b"\0" * 8),
        array(1, (1,), objects, False, b"\0" * 8),  # bytes as addresses of objects
        array(1, "x", floats, False, b""),
        array(),
        "text",
        {"a": 1},
    ):
        with pytest.raises(ValueError):
            to_array(bad)


def archive(path: Path, pickled: bytes, compression: int = zipfile.ZIP_STORED) -> Path:
    """A zip as torch.save makes it, of one pickle and a tensor's bytes."""
    with zipfile.ZipFile(path, "w", compression) as made:
        made.writestr("archive/data.pkl", pickled)
        made.writestr("archive/version", b"3\n")
        made.writestr("archive/byteorder", b"little")
        made.writestr("archive/data/0", b"\0" * 2**20)
    return path


#: A dict whose key is a tuple within a tuple ...; a list within a list ...; numbers; a text; each without end.
TUPLES = b"\x80\x02})" + b"\x85" * 1_000_000 + b"K\x01s."
LISTS = b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."
NUMBERS = b"\x80\x02](" + b"K\x01" * 600_000 + b"e."
TEXT = b"\x80\x02X" + (9 * 2**20).to_bytes(4, "little") + b"x" * (9 * 2**20) + b"."


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("pickled", "words"), [(TUPLES, "is refused"), (NUMBERS, "is refused"), (TEXT, "is refused|not a file of")],
    ids=["tuples", "numbers", "text"],
)  # fmt: skip
def test_pickles_without_end_are_refused_at_once(tmp_path: Path, pickled: bytes, words: str, zipped: bool):
    path = tmp_path / "c.pth"
    archive(path, pickled) if zipped else path.write_bytes(pickled)
    started = time.monotonic()
    with pytest.raises(UserError, match=words) as caught:
        load(path)
    assert time.monotonic() - started < 30 and "\n" not in str(caught.value)


def test_lists_nested_deeply_do_no_harm(tmp_path: Path):
    """They are read, and are no checkpoint."""
    assert isinstance(load(archive(tmp_path / "c.pth", LISTS)), list)
    with pytest.raises(UserError, match="contains no weights: expected a state dict"):
        read_model(ImportOptions(checkpoint=str(tmp_path / "c.pth"), out=tmp_path / "m"))


def test_archives_that_unpack_to_more_than_they_are_are_refused(tmp_path: Path):
    torch.save({"w": torch.zeros(10)}, tmp_path / "good.pth")
    assert load(tmp_path / "good.pth")["w"].shape == (10,)
    with fails("weights-refused", "compressed", "torch.save"):
        load(archive(tmp_path / "c.pth", b"\x80\x02}.", zipfile.ZIP_DEFLATED))
    content = bytearray(archive(tmp_path / "c.pth", b"\x80\x02}.").read_bytes())
    at = content.index(b"PK\x01\x02")
    content[at + 24 : at + 28] = (2**30).to_bytes(4, "little")  # a size that the zip directory claims
    (tmp_path / "c.pth").write_bytes(content)
    with pytest.raises(UserError, match=r"its pickles have 1073741824 bytes|its members are larger than the file"):
        load(tmp_path / "c.pth")
    end = content.index(b"PK\x05\x06")
    content[end + 12 : end + 16] = (2**28).to_bytes(4, "little")
    (tmp_path / "c.pth").write_bytes(content)
    with pytest.raises(
        UserError, match=r"its zip directory has 268435456 bytes|was not written by torch.save|truncated"
    ):
        load(tmp_path / "c.pth")


@pytest.mark.parametrize(
    "state",
    [
        (1, (10**30,), PickledDtype("f8"), False, b""),
        (1, (2**40, 2**40), PickledDtype("f8"), False, b""),
        (1, (10**9,), PickledDtype("O"), False, []),
        (1, (1,), PickledDtype("f8"), False, 10**15),
        (1, "x", PickledDtype("f8"), False, b""),
        (1, (1,), PickledDtype("V100"), False, b""),
        (1, (1,), None, False, b""),
        None,
    ],
)
def test_arrays_that_are_none_are_one_kind_of_error(state: Any):
    array = PickledArray()
    array.state = state
    with pytest.raises(ValueError):
        to_array(array)


@pytest.mark.parametrize("scalar", [PickledScalar(PickledDtype("f8"), b""), PickledScalar(), PickledScalar(3, 10**15)])
def test_numbers_that_are_none_too(scalar: Any):
    with pytest.raises(ValueError):
        to_number(scalar)
