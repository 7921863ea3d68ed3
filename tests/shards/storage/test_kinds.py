"""A path in the wrong place is recognised by the names of its files, and the line has the remedy that fits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from failing import fails

from shards.dataset.manifest import Manifest
from shards.inputs.image_files import require_images
from shards.storage import kinds
from shards.storage.kinds import REMEDIES, kind_of, other_kind
from shards.tables.readers import open_table

#: Path → the kind that it is. A path with a slash at its end is an empty folder.
PATHS = {
    "set/manifest.json": ("set", kinds.SHARD_SET),
    "model/config.json model/labels.json": ("model", kinds.MODEL),
    "hub/config.json hub/model.safetensors": ("hub", kinds.MODEL),
    "run/config.yaml run/checkpoints/": ("run", kinds.RUN),
    "begun/config.yaml": ("begun", kinds.RUN),
    "done/config.yaml done/model/": ("done", kinds.RUN),
    "step/state.pt": ("step", kinds.CHECKPOINT_FOLDER),
    "tars/a.tar": ("tars", kinds.TARS),
    "images/a.JPG images/notes.txt": ("images", kinds.IMAGES),
    "nested/inner/a.jpg": ("nested", kinds.IMAGES),
    "a.jpg": ("a.jpg", kinds.IMAGE),
    "t.csv": ("t.csv", kinds.TABLE),
    "t.parquet": ("t.parquet", kinds.TABLE),
    "c.yaml": ("c.yaml", kinds.CONFIG),
    "c.pth": ("c.pth", kinds.PICKLE),
    "w.safetensors": ("w.safetensors", kinds.WEIGHTS),
    "m.onnx": ("m.onnx", kinds.ONNX),
    "a.tar": ("a.tar", kinds.TAR),
    "sets/manifest.json": ("sets/manifest.json", kinds.MANIFEST),
    "notes.txt": ("notes.txt", None),
    "texts/notes.txt": ("texts", None),
    "empty/": ("empty", None),
}


def make(folder: Path, names: str) -> None:
    for name in names.split():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir() if name.endswith("/") else path.write_bytes(b"\xff\xfe\xfd")


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("places")
    for names in PATHS:
        make(folder, names)
    return folder


@pytest.mark.parametrize(("name", "kind"), PATHS.values())
def test_a_kind_is_recognised(name: str, kind: str | None, places: Path):
    assert kind_of(places / name) == kind


def test_what_does_not_exist_is_of_no_kind(tmp_path: Path):
    assert kind_of(tmp_path / "absent") is None and other_kind(tmp_path / "absent", kinds.MODEL) is None


@pytest.mark.parametrize("name", ["train-{000000..000147}.tar", "*.tar"])
def test_a_pattern_of_tars_is_no_shard_set(name: str, tmp_path: Path):
    with fails("set-missing", f"{name} is a pattern of tars, not a shard set", "posters shards index", "manifest.json"):
        Manifest.read(tmp_path / name)


@pytest.mark.parametrize("wanted", REMEDIES)
@pytest.mark.parametrize(("name", "kind"), PATHS.values())
def test_a_line_names_path_kind_and_remedy(wanted: str, name: str, kind: str | None, places: Path):
    line = other_kind(places / name, wanted)
    if kind in (None, wanted) or (wanted, kind) == (kinds.SHARD_SET, kinds.TARS):
        assert line is None
    else:
        assert line is not None and line.startswith(f"{places / name} is {kind}, not {wanted}; ")
        assert "{" not in line and "\n" not in line


def read_table(path: Path) -> None:
    with open_table(path) as table:
        list(table.rows)


@pytest.mark.parametrize(
    ("opened", "code", "name", "remedy"),
    [
        (Manifest.read, "set-missing", "model", "is a model folder, not a shard set; pass it with --model"),
        (Manifest.read, "set-missing", "done", "is a run folder, not a shard set; pass it with --model"),
        (Manifest.read, "set-missing", "images", "`posters shards build --images"),
        (Manifest.read, "set-missing", "t.csv", "`posters shards build --images DIR --metadata"),
        (Manifest.read, "set-missing", "tars", "finish its `posters shards build`, or run `posters shards index"),
        (Manifest.read, "set-missing", "a.tar", "name the folder that contains it"),
        (Manifest.read, "set-missing", "sets/manifest.json", "name the folder that contains it"),
        (require_images, "path-missing", "t.csv", "is a table, not a folder of images; pass it with --metadata"),
        (require_images, "images-none", "set", "is a shard set, not a folder of images; pass it with --shards"),
        (require_images, "images-none", "texts", "no .jpg"),
        (read_table, "table-unreadable", "set", "is a shard set, not a table; it already has genres"),
        (read_table, "table-unreadable", "c.pth", "is a checkpoint file, not a table"),
        (read_table, "table-unreadable", "a.jpg", "is an image, not a table"),
    ],
)
def test_where_a_path_is_opened(opened: Callable[[Path], None], code: str, name: str, remedy: str, places: Path):
    with fails(code, places / name, remedy):  # type: ignore[arg-type]
        opened(places / name)
