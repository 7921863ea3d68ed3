"""A disk that fills up, in each writer: one line that names the file, status 2, and what was there before is intact.

Another file system than the rest's, really full; a test chooses the moment by filling it when the writer is called.
Shards, batch predictions, model folders and exports have their tests elsewhere (docs/reference/exit-codes.md).
"""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
from fault_tools import SMALL, Disk, assert_no_half_files, assert_same_run, command, contents, train_options
from toolkit_helpers import weights_option

import toolkit.cli.run_evaluate
import toolkit.evaluation.tune
import toolkit.export.run
import toolkit.prediction.files
import toolkit.report.output
import toolkit.training.cached.feature_cache
import toolkit.training.lr_finder
import toolkit.training.run
import toolkit.training.run_log
import toolkit.training.trainer
from toolkit.cli.main import main
from toolkit.inference.split_outputs import SplitLogits
from toolkit.model_folder.folder import load_model_folder

pytest_plugins = ("fault_fixtures",)

FULL = "No space left on device"


pytestmark = pytest.mark.usefixtures("single_thread")


@pytest.fixture(scope="module")
def whole(drawn_set: Path, single_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs on a disk with room. Read-only."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert main(train_options(drawn_set, out, "--train.epochs=2")) == 0
    return out


@pytest.mark.parametrize(
    ("owner", "name", "file"),
    [
        (toolkit.training.trainer, "save_checkpoint", "state.pt"),
        (toolkit.training.trainer, "export_model", "model"),
        (toolkit.training.run, "save_config", "config.yaml"),
        (toolkit.training.run_log, "_cut", "log.csv"),
    ],
    ids=["checkpoint", "model", "config", "log"],
)
def test_training(
    owner: Any, name: str, file: str, drawn_set: Path, whole: Path, disk: Disk, capsys: pytest.CaptureFixture[str]
):
    """The first epoch is done when the disk fills up; with room again the run comes to the end of any other."""
    out, threads = disk.folder / "run", set(threading.enumerate())
    assert command(train_options(drawn_set, out), capsys) == (0, "")
    before = contents(out)
    resumed = train_options(drawn_set, out, "--train.epochs=2", "--resume")
    with disk.full_during(owner, name):
        status, line = command(resumed, capsys)
        assert (status, FULL in line, file in line) == (2, True, True), line
        assert_no_half_files(out)
        now = contents(out)
        assert all(now[path].startswith(before[path]) for path in ("log.csv", "epochs.csv"))
        assert all(now[path] == content for path, content in before.items() if path.startswith("checkpoints/"))
        load_model_folder(out / "model")  # of the first epoch, or already of the second: whole
    assert command(resumed, capsys) == (0, "")
    assert_same_run(out, whole)
    assert not [t for t in set(threading.enumerate()) - threads if t.name.startswith("decode")]


@pytest.mark.parametrize(("kind", "file"), [("step", "log.csv"), ("epoch", "epochs.csv")])
def test_a_row_of_a_log(
    kind: str,
    file: str,
    drawn_set: Path,
    whole: Path,
    disk: Disk,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    """Half a row may be left, which the resumed run takes away."""
    out = disk.folder / "run"
    assert command(train_options(drawn_set, out), capsys) == (0, "")
    real = getattr(toolkit.training.run_log.RunLog, kind)

    def in_vain(self: Any, row: dict[str, Any]) -> None:
        log = out / file
        with open(log, "a") as stream:  # up to the end of a page, which is what a tmpfs counts
            stream.write("\n" * (-log.stat().st_size % 4096))
        disk.fill()
        real(self, row)

    resumed = train_options(drawn_set, out, "--train.epochs=2", "--resume")
    before = (out / file).read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(toolkit.training.run_log.RunLog, kind, in_vain)
        status, line = command(resumed, capsys)
    assert status == 2 and FULL in line and file in line
    assert (out / file).read_bytes().startswith(before)
    disk.free()
    assert command(resumed, capsys) == (0, "")
    assert_same_run(out, whole)


@pytest.mark.parametrize("room", [0, 4096], ids=["at its start", "later"])
def test_tensorboard(
    room: int, drawn_set: Path, disk: Disk, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
):  # fmt: skip
    """On a disk of its own. The training goes on without it."""
    out = tmp_path / "run"
    out.mkdir()
    (out / "tensorboard").symlink_to(disk.folder)
    disk.fill(room)
    options = [*SMALL, "--train.trackers={tensorboard: {}}", "--train.epochs=6", "--train.patience=0"]
    options = ["train", "--shards", str(drawn_set), "--out", str(out), *options]
    assert command(options, capsys) == (0, "")
    (line,) = [record.getMessage() for record in caplog.records if record.getMessage().startswith("tracker")]
    assert FULL in line and "tensorboard" in line
    assert list(out.glob("checkpoints/step-*"))


def test_find_lr(drawn_set: Path, disk: Disk, capsys: pytest.CaptureFixture[str]):
    out = disk.folder / "run"
    for file in ("find-lr.csv", "find-lr.png"):
        (out / file).parent.mkdir(exist_ok=True)
        (out / file).write_text("of an earlier test")
    with disk.full_during(toolkit.training.lr_finder, "save_curve"):
        status, line = command(train_options(drawn_set, out, "--find-lr"), capsys)
    assert status == 2 and FULL in line and "find-lr.csv" in line
    assert {path.name: path.read_text() for path in out.glob("find-lr.*")} == {
        "find-lr.csv": "of an earlier test",
        "find-lr.png": "of an earlier test",
    }


def test_cached_features(drawn_set: Path, disk: Disk, capsys: pytest.CaptureFixture[str]):
    options = train_options(
        drawn_set, disk.folder / "run", "--model.freeze=[backbone]", weights_option(), "--train.feature_views=1"
    )
    with disk.full_during(toolkit.training.cached.feature_cache.FeatureBank, "_compute"):
        status, line = command(options, capsys)
        assert status == 2 and FULL in line and ".npy" in line
        assert not list((disk.folder / "run" / "features").iterdir())
    assert command(options, capsys) == (0, "")
    assert len(list((disk.folder / "run" / "features").glob("*.npy"))) == 2


@pytest.mark.parametrize(
    ("verb", "owner", "name", "file"),
    [
        ("evaluate", toolkit.cli.run_evaluate, "write_json", "metrics-test.json"),
        ("evaluate", SplitLogits, "save", "predictions-test.npz"),
        ("evaluate", toolkit.cli.run_evaluate, "write_card", "README.md"),
        ("tune", toolkit.evaluation.tune, "write_labels", "labels.json"),
        ("tune", toolkit.evaluation.tune, "write_json", "metrics-val.json"),
        ("tune", SplitLogits, "save", "predictions-val.npz"),
    ],
)
def test_metrics_and_decisions(
    verb: str,
    owner: Any,
    name: str,
    file: str,
    drawn_set: Path,
    fault_model: Path,
    disk: Disk,
    capsys: pytest.CaptureFixture[str],
):
    """What this file replaces is there as it was, and every file of the model is whole."""
    model = disk.folder / "model"
    shutil.copytree(fault_model, model)
    words = [verb, "--model", model, "--shards", drawn_set]
    assert command(words, capsys) == (0, "")
    before = contents(model)
    with disk.full_during(owner, name):
        status, line = command([*words, *(["--aim", "recall>=0.9"] if verb == "tune" else [])], capsys)
    assert status == 2 and FULL in line and file in line
    assert_no_half_files(model)
    assert contents(model).keys() == before.keys() and (model / file).read_bytes() == before[file]
    assert command(words, capsys) == (0, "")  # the folder is still a model
    assert contents(model) == before


def test_a_report(drawn_set: Path, fault_model: Path, disk: Disk, capsys: pytest.CaptureFixture[str]):
    """Without its page, which is written last, a folder is no report; the same command makes it one."""
    words = ["evaluate", "--model", shutil.copytree(fault_model, disk.folder / "model"), "--shards", drawn_set]
    words += ["--report", disk.folder / "report"]
    with disk.full_during(toolkit.report.output, "write_json"):
        status, line = command(words, capsys)
    assert status == 2 and FULL in line and "report/metrics.json" in line
    assert_no_half_files(disk.folder / "report")
    assert not (disk.folder / "report" / "index.html").exists()
    assert command(words, capsys) == (0, "")
    assert (disk.folder / "report" / "index.html").is_file()


@pytest.mark.parametrize("ending", ["csv", "json", "txt"])
def test_predictions_of_a_few_images(
    ending: str, drawn_posters: Path, fault_model: Path, disk: Disk, capsys: pytest.CaptureFixture[str]
):
    out = disk.folder / f"predictions.{ending}"
    words = ["predict", "-m", fault_model, "-d", drawn_posters / "images", "-o", out]
    assert command(words, capsys) == (0, "")
    before = out.read_bytes()
    with disk.full_during(toolkit.prediction.files, "write_predictions"):
        status, line = command([*words, "--verbose"], capsys)
    assert status == 2 and FULL in line and out.name in line
    assert out.read_bytes() == before
    assert_no_half_files(disk.folder)


def test_sidecars(drawn_posters: Path, fault_model: Path, disk: Disk, capsys: pytest.CaptureFixture[str]):
    """The image and its older sidecar stay."""
    shutil.copy(drawn_posters / "images" / "p00000.jpg", disk.folder)
    words = ["predict", "-m", fault_model, "-d", disk.folder, "--sidecar", "json", "--overwrite"]
    assert command(words, capsys) == (0, "")
    before = contents(disk.folder)
    with disk.full_during(toolkit.prediction.files, "write_sidecars"):
        status, line = command([*words, "--top-k", "1"], capsys)
    assert status == 2 and FULL in line and "p00000.json" in line
    assert contents(disk.folder) == before and before.keys() == {"p00000.jpg", "p00000.json"}


@pytest.mark.parametrize("format", ["onnx", "torch-export"])
def test_an_export(format: str, fault_model: Path, disk: Disk, capsys: pytest.CaptureFixture[str]):
    """The file of an earlier export stays."""
    out = disk.folder / "exported"
    out.write_text("of an earlier export")
    with disk.full_during(toolkit.export.run, "remove_dead_partials"):
        status, line = command(["export", "-m", fault_model, "--format", format, "--out", out], capsys)
    assert status == 2 and FULL in line and str(out) in line
    assert contents(disk.folder) == {"exported": b"of an earlier export"}
