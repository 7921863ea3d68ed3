"""BatchNorm learns no statistics from a few rows, and a run says so before it starts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from failing import fails
from safetensors.torch import load_file
from toolkit_helpers import TINY, error_lines, launch_2, weights_option
from torch import nn
from train_tools import TINY_VIT, make_updater, make_updates, state_of

from toolkit.data.sampling.plan import Sizes, TrainPlan
from toolkit.data.sampling.shuffle import GlobalOrder
from toolkit.training.batch_norm import check_rows, fixed_batch_norm

pytestmark = pytest.mark.usefixtures("one_thread")

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def plan_of(n: int, batch: int, sizes: Sizes = "even") -> TrainPlan:
    return TrainPlan(GlobalOrder(n, 0), batch, sizes=sizes)


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> tuple[bool, bool]:
    """(whether statistics of BatchNorm differ, whether weights do)."""
    differ = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    statistics = {name for name in differ if name.endswith(STATISTICS)}
    return bool(statistics), bool(differ - statistics)


@pytest.mark.parametrize(
    ("options", "accumulation", "learns"),
    [
        (["--train.batch_size=14"], 1, True),  # 56 samples: four updates of 14
        (["--train.batch_size=14"], 2, False),  # in halves of 7
        (["--train.batch_size=16"], 2, False),  # which does not make them larger
        (["--train.batch_size=19"], 2, True),  # 9 rows at least
        (["--train.batch_size=14", "--model.checkpointing=true"], 2, False),  # nor do passes that are made again
        (["--train.batch_size=14", "--train.ema=0.9"], 2, False),
    ],
)
def test_statistics_are_held_where_a_micro_batch_has_few_rows(
    shard_set: Path, tmp_path: Path, options: list[str], accumulation: int, learns: bool
):
    train_step, plan = make_updater(shard_set, tmp_path, *options, "--model.freeze=[]", accumulation=accumulation)
    model = train_step.plain_model
    before, modes = state_of(model), [module.training for module in model.modules()]
    make_updates(train_step, plan, 2, 0.01)
    assert moved(before, model.state_dict()) == (learns, True)
    assert [module.training for module in model.modules()] == modes and all(modes)


def test_a_held_update_is_that_of_running_statistics(shard_set: Path, tmp_path: Path):
    """The loss of a model in evaluation mode, which dropout aside is what a held one computes."""
    train_step, plan = make_updater(
        shard_set, tmp_path, "--train.batch_size=6", "--model.dropout=0", "--model.freeze=[]"
    )
    (loss,) = make_updates(train_step, plan, 1, 0.0)
    train_step.plain_model.eval()
    again = make_updates(train_step, plan, 1, 0.0)
    assert loss == again[0]


def test_runs_of_before_go_on_as_they_began(shard_set: Path, tmp_path: Path):
    train_step, plan = make_updater(shard_set, tmp_path, "--train.batch_size=6")
    train_step.plan = TrainPlan(plan.order, 6, sizes="tail")
    before = state_of(train_step.plain_model)
    make_updates(train_step, train_step.plan, 1, 0.01)
    assert moved(before, train_step.plain_model.state_dict()) == (True, True)


@pytest.mark.parametrize(
    ("world", "accumulation", "own", "synced"),
    [(1, 1, True, True), (2, 1, True, True), (4, 1, False, True), (1, 4, False, False), (2, 2, False, True)],
)
def test_rows_are_a_processs_or_of_all_where_they_are_synchronised(
    world: int, accumulation: int, own: bool, synced: bool
):
    plan = plan_of(31, 31)
    norms = [nn.BatchNorm2d(3), nn.SyncBatchNorm(3)]
    without = nn.BatchNorm2d(3, track_running_stats=False)  # has nothing to normalise by but the batch
    frozen = nn.BatchNorm2d(3).eval()
    with fixed_batch_norm(nn.Sequential(*norms, without, frozen), plan, 0, world, accumulation):
        assert [norm.training for norm in norms] == [own, synced]
        assert without.training and not frozen.training
    assert all(norm.training for norm in norms) and not frozen.training


def test_what_lies_within_a_norm_is_left_alone():
    """timm's BatchNorm with activation holds dropout too."""

    class WithDropout(nn.BatchNorm2d):
        def __init__(self) -> None:
            super().__init__(3)
            self.drop = nn.Dropout()

    norm = WithDropout()
    with pytest.raises(ZeroDivisionError), fixed_batch_norm(norm, plan_of(4, 4), 0, 1, 1):
        assert not norm.training and norm.drop.training
        raise ZeroDivisionError
    assert norm.training  # also after an error


@pytest.mark.parametrize(
    ("n", "batch", "world", "accumulation", "words"),
    [
        (640, 64, 1, 1, None),
        (640, 64, 2, 1, None),
        (3203, 64, 2, 1, None),  # 31 or 32 rows
        (3203, 32, 1, 1, None),  # 31 or 32
        (20, 64, 1, 1, ["up to 20 rows per process: "]),
        (640, 64, 4, 1, ["up to 16 rows per process:", "--train.sync_batchnorm true", "fewer processes"]),
        (640, 64, 1, 4, ["up to 16 rows per process:", "lower --train.accumulation"]),
        (31, 16, 2, 1, ["up to 8 rows per process, and keeps them fixed in 1 of 2 updates per epoch"]),
        (3203, 64, 8, 1, ["micro-batches have 7 rows, fewer than 8: BatchNorm keeps the statistics"]),
        (20, 64, 4, 2, ["micro-batches have 2 rows"]),
    ],
)
def test_a_run_is_warned_of_few_rows(n: int, batch: int, world: int, accumulation: int, words: list[str] | None):
    model = nn.Sequential(nn.BatchNorm2d(3))
    line = check_rows(model, plan_of(n, batch), world, accumulation, trained=True)
    assert (line is None) == (words is None)
    for word in words or []:
        assert line is not None and word in line and "\n" not in line and "--train.batch_size" in line
    none = check_rows(nn.Sequential(nn.LayerNorm(3)), plan_of(n, batch), world, accumulation, trained=True)
    assert none is None and check_rows(model.eval(), plan_of(n, batch), world, 1, trained=False) is None


def test_random_statistics_are_not_worth_holding():
    model = nn.Sequential(nn.BatchNorm2d(3))
    with fails("option-value", "7 rows", "--model.weights FILE"):
        check_rows(model, plan_of(3203, 64), 8, 1, trained=False)
    some = check_rows(model, plan_of(31, 16), 2, 1, trained=False)
    assert some is not None and "1 of 2 updates" in some
    before = check_rows(model, plan_of(3203, 64, "tail"), 8, 1, trained=True)
    assert before is not None and "keeps" not in before


def test_two_processes_hold_the_statistics_of_their_weights(shard_set: Path, tmp_path: Path):
    """56 samples in updates of 14, of which each process has 7."""
    weights = weights_option()
    options = ["--shards", shard_set, *TINY, "--train.batch_size=14", "--train.epochs=1", "--model.freeze=[]"]
    run = launch_2("launch/train.py", *options, "--out", tmp_path / "run", weights)
    assert run.returncode == 0, run.stderr
    told = [line for line in run.stderr.splitlines() if "BatchNorm" in line]
    assert len(told) == 1 and "micro-batches have 7 rows" in told[0]
    trained = load_file(tmp_path / "run" / "model" / "model.safetensors")
    first = load_file(weights.partition("=")[2])
    assert moved(first, {name: trained[name] for name in first}) == (False, True)
    refused = launch_2("launch/train.py", *options, "--out", tmp_path / "refused")
    assert refused.returncode == 2 and not (tmp_path / "refused" / "checkpoints").exists()
    assert "BatchNorm cannot compute its statistics from micro-batches of 7 rows" in error_lines(refused)[0]


def test_a_transformer_is_not_concerned(shard_set: Path, tmp_path: Path):
    train_step, plan = make_updater(shard_set, tmp_path, *TINY_VIT, "--train.batch_size=2")
    assert check_rows(train_step.setup.model, plan, 2, 1, trained=False) is None
