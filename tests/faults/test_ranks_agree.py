"""What one rank alone meets or sees: all of them say it, or none goes on."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from fault_tools import Disk, Ended, assert_no_half_files, assert_same_run, contents, ended, train_options
from toolkit_helpers import weights_option

pytest_plugins = ("fault_fixtures",)

TWO_EPOCHS = ["--train.epochs=2", "--train.checkpoint_steps=2"]
NEWEST = "checkpoints/step-00000008"


def one_line_of_both(run: Ended) -> str:
    """What both ranks said, after they ended with status 2."""
    assert run.statuses == [2, 2], run.said
    first, second = run.errors
    assert second == first.replace("error: ", "error: [rank 1] ", 1)
    return first


# --- which checkpoint -------------------------------------------------------------------------------------------------


def _another(run: Path) -> None:
    """Whole, and under the same name: of another run."""
    shutil.rmtree(run / NEWEST)
    shutil.copytree(run / "checkpoints/step-00000007", run / NEWEST)


def _damage(run: Path) -> None:
    path = run / NEWEST / "state.pt"
    path.write_bytes(path.read_bytes()[:-1000])


LACKS = "rank 1 does not have the checkpoint that the first process resumes from, step-00000008 (on "


@pytest.mark.parametrize(
    ("rank", "change", "words"),
    [
        (1, lambda run: shutil.rmtree(run / NEWEST), [LACKS, "checkpoint's state not found: ", "state.json"]),
        (1, lambda run: shutil.rmtree(run), [LACKS, "checkpoint's state not found: ", "state.json"]),
        (1, _damage, [LACKS, "the sha256 of ", "differs from the saved sha256"]),
        (1, _another, [LACKS, "the sha256 of ", " instead of "]),
        (
            0,
            lambda run: shutil.rmtree(run / "checkpoints"),
            ["rank 1 finds checkpoints, but the first process finds none (on ", NEWEST],
        ),
    ],
    ids=["older", "nothing", "damaged", "another", "first has none"],
)
def test_ranks_that_see_other_checkpoints(
    rank: int, change: Callable[[Path], None], words: list[str], drawn_set: Path, two_checkpoints: Path, tmp_path: Path
):
    """Two nodes with a RUN of their own each: nobody trains on, and nothing is written."""
    for number in range(2):
        shutil.copytree(two_checkpoints, tmp_path / f"run-{number}")
    change(tmp_path / f"run-{rank}")
    before = contents(tmp_path)
    options = train_options(drawn_set, tmp_path / "run-{rank}", *TWO_EPOCHS, "--resume")
    said = tmp_path.with_name(f"{tmp_path.name}-said")
    line = one_line_of_both(ended(options, said, 2))
    assert "put --out on a file system that all nodes share, under the same path" in line
    for word in words:
        assert word in line
    assert contents(tmp_path) == before


def test_the_first_process_chooses_for_all(drawn_set: Path, two_checkpoints: Path, tmp_path: Path):
    """It cannot read the newest one, the other rank could: both go on from the one before."""
    for name in ("shared", "run-0", "run-1"):
        shutil.copytree(two_checkpoints, tmp_path / name)
    for name in ("shared", "run-0"):
        _damage(tmp_path / name)
    for out in ("shared", "run-{rank}"):
        options = train_options(drawn_set, tmp_path / out, *TWO_EPOCHS, "--resume")
        run = ended(options, tmp_path / f"said-{out}", 2)
        assert run.statuses == [0, 0], run.said
        assert "step-00000007: epoch 2, step 0" in run.said[0]
    assert_same_run(tmp_path / "run-0", tmp_path / "shared")
    assert contents(tmp_path / "run-1") == contents(two_checkpoints)  # only the first process writes


# --- which weights ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("other", "statuses"), [(1, [2, 2]), (9, [0, 0])])
def test_ranks_whose_caches_of_the_hub_differ(other: int, statuses: list[int], drawn_set: Path, tmp_path: Path):
    """What the options do not tell; test_agreement_processes.py has what they do."""
    options = train_options(drawn_set, tmp_path / "run", "--model.weights=null", "--model.pretrained=true")
    run = ended(options, tmp_path / "said", 2, f"hub {other}")
    assert run.statuses == statuses, run.said
    if any(statuses):
        line = one_line_of_both(run)
        assert "rank 1 has weights of test_resnet " in line and ", but the first process has " in line
        assert not (tmp_path / "run" / "checkpoints").exists()


# --- what the first process does alone --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "file"),
    [
        ("toolkit.training.run:save_config", "config.yaml"),
        ("toolkit.training.run_log:_cut", "log.csv"),
        ("toolkit.training.run_log:RunLog._append", "log.csv"),
        ("toolkit.training.trainer:save_checkpoint", "state.pt"),
        ("toolkit.training.trainer:export_model", "model"),
    ],
    ids=["config", "log", "row", "checkpoint", "model"],
)
def test_what_the_first_process_cannot_write(
    where: str, file: str, drawn_set: Path, unharmed: dict[int, Path], disk: Disk, tmp_path: Path
):
    """Status 2 for both: the other one has not lost anybody."""
    run = disk.folder / "run"
    options = train_options(drawn_set, run, *TWO_EPOCHS)
    line = one_line_of_both(ended(options, tmp_path / "first", 2, f"full {where} {disk.folder}"))
    assert "No space left on device" in line and file in line
    assert_no_half_files(run)
    disk.free()
    again = ended([*options, "--resume"], tmp_path / "second", 2)
    assert again.statuses == [0, 0], again.said
    assert_same_run(run, unharmed[2])


@pytest.mark.parametrize(
    ("where", "options", "file"),
    [
        (
            "toolkit.training.cached.feature_files:FeatureWriter.add",
            ["--model.freeze=[backbone]", weights_option(), "--train.feature_views=1"],
            ".npy",
        ),
        pytest.param("toolkit.training.lr_finder:save_curve", ["--find-lr"], "find-lr.csv", marks=pytest.mark.long),
    ],
    ids=["features", "find-lr"],
)
def test_what_it_cannot_write_beside_a_training(
    where: str, options: list[str], file: str, drawn_set: Path, disk: Disk, tmp_path: Path
):
    options = train_options(drawn_set, disk.folder / "run", *options)
    line = one_line_of_both(ended(options, tmp_path / "first", 2, f"full {where} {disk.folder}"))
    assert "No space left on device" in line and file in line
    disk.free()
    assert ended(options, tmp_path / "second", 2).statuses == [0, 0]


def test_what_the_first_process_finds_wrong_with_an_epoch(drawn_set: Path, tmp_path: Path):
    """A UserError of its own: the loss of training was a number, that of validation is none."""
    options = train_options(
        drawn_set, tmp_path / "run", "--model.weights=null", "--model.name=test_vit", "--model.head=linear",
        "--model.dropout=0",
        "--optim.name=momentum", "--optim.lr=1e18", "--train.batch_size=56", "--optim.schedule=constant",
    )  # fmt: skip
    line = one_line_of_both(ended(options, tmp_path / "said", 2))
    assert "the model's outputs on validation are not finite: lower --optim.lr" in line
