"""Training for real: whole epochs in one and two processes, killed, stopped, resumed."""

from __future__ import annotations

import csv
import json
import random
import shutil
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file
from toolkit_helpers import TINY, accelerate_launch, error_lines, launch_2, posters_command, run_script

from shards.dataset.manifest import Manifest
from toolkit.data.sources.shard_reader import ShardReader
from toolkit.model_folder.folder import load_model_folder

PROBE = Path(__file__).resolve().parents[1] / "probe_train.py"


def read_spy(folder: Path) -> dict[tuple[int, int], list[str]]:
    """(epoch, step) → sorted keys of that update over all ranks; the later word counts where a step was done twice."""
    by_rank: dict[tuple[int, int], dict[int, list[str]]] = defaultdict(dict)
    for path in sorted(folder.glob("rank*.jsonl")):
        for line in path.read_text().splitlines():
            record = json.loads(line)
            by_rank[record["epoch"], record["step"]][record["rank"]] = record["keys"]
    return {at: sorted(key for keys in ranks.values() for key in keys) for at, ranks in by_rank.items()}


def train_keys(shard_set: Path) -> list[str]:
    reader = ShardReader.of_split(shard_set, "train")
    return sorted(reader.key(i) for i in range(len(reader)))


def two_epochs(shard_set: Path, tmp_path: Path, *more: str) -> list[object]:
    """Options of a run that a test interrupts; uninterrupted it would be the fixture ``whole``."""
    return ["--shards", shard_set, "--out", tmp_path / "run", *TINY, "--train.epochs=2", *more]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def whole(shard_set: Path, runs: Path) -> Path:
    """An uninterrupted run of two epochs in one process, seen by the spy."""
    out = runs / "whole"
    run = run_script(PROBE, runs / "spy-whole", "", "--shards", shard_set, "--out", out, *TINY, "--train.epochs=2",
                     "--train.log_steps=1")  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "1 process(es) on cpu" in run.stderr and "steps per epoch" in run.stderr
    limits = [line for line in run.stderr.splitlines() if "waiting for data takes " in line]
    assert limits and all(" the limit" in line or " are late" in line for line in limits)
    return out


@pytest.fixture(scope="module")
def double(shard_set: Path, runs: Path) -> Path:
    """The same run in two processes."""
    out = runs / "double"
    run = accelerate_launch(
        PROBE, runs / "spy-double", "", "--shards", shard_set, "--out", out, *TINY, "--train.epochs=2"
    )
    assert run.returncode == 0, run.stderr
    assert "2 process(es) on cpu" in run.stderr
    return out


def test_what_a_run_leaves(whole: Path, shard_set: Path):
    assert {"model.safetensors", "config.json", "labels.json", "README.md", "metrics-val.json"} <= {
        p.name for p in (whole / "model").iterdir()
    }
    folder = load_model_folder(whole / "model")
    assert folder.labels == Manifest.read(shard_set).labels
    with open(whole / "epochs.csv") as stream:
        epochs = list(csv.DictReader(stream))
    assert [row["epoch"] for row in epochs] == ["0", "1"]
    assert all(float(row["val_loss"]) > 0 and 0 <= float(row["data_wait"]) <= 1 for row in epochs)
    with open(whole / "log.csv") as stream:
        steps = list(csv.DictReader(stream))
    assert [int(row["update"]) for row in steps] == list(range(1, len(steps) + 1))
    config = yaml.safe_load((whole / "config.yaml").read_text())
    assert config["model"]["name"] == "test_resnet" and config["train"]["epochs"] == 2
    assert not list(whole.rglob("*.partial"))
    best = min(float(row["val_loss"]) for row in epochs)
    assert json.loads((whole / "model" / "metrics-val.json").read_text())["loss"] == pytest.approx(best, rel=1e-5)


@pytest.mark.parametrize("name", ["whole", pytest.param("double", marks=pytest.mark.long)])
def test_every_epoch_visits_every_sample_once(name: str, request: pytest.FixtureRequest, runs: Path, shard_set: Path):
    request.getfixturevalue(name)
    updates = read_spy(runs / f"spy-{name}")
    for epoch in (0, 1):
        visited = sorted(key for (e, _), keys in updates.items() if e == epoch for key in keys)
        assert visited == train_keys(shard_set)


def test_two_processes_meet_the_same_samples_in_the_same_updates(whole: Path, double: Path, runs: Path):
    assert read_spy(runs / "spy-whole") == read_spy(runs / "spy-double")
    ranks = [len((runs / "spy-double" / f"rank{r}.jsonl").read_text().splitlines()) for r in (0, 1)]
    assert ranks[0] == ranks[1] > 0  # equal number of updates


def test_killed_and_resumed_gives_the_same_weights_bit_for_bit(
    whole: Path, runs: Path, shard_set: Path, tmp_path: Path
):
    options = two_epochs(shard_set, tmp_path, "--train.checkpoint_steps=2")
    steps = len([at for at in read_spy(runs / "spy-whole") if at[0] == 0])
    killed = run_script(PROBE, tmp_path / "spy", f"kill {steps + 3}", *options)
    assert killed.returncode == -9
    (newest,) = sorted((tmp_path / "run" / "checkpoints").iterdir())[-1:]
    assert newest.name > f"step-{steps:08d}"  # inside the second epoch: the resume starts between two of its updates
    resumed = run_script(PROBE, tmp_path / "spy", "", *options, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert "resumed from" in resumed.stderr
    assert read_spy(tmp_path / "spy") == read_spy(runs / "spy-whole")
    ours, theirs = (load_file(tmp_path / "run/model/model.safetensors"), load_file(whole / "model/model.safetensors"))
    assert ours.keys() == theirs.keys()
    assert (tmp_path / "run/model/model.safetensors").read_bytes() == (whole / "model/model.safetensors").read_bytes()


def test_killed_at_two_processes_resumed_at_one_then_two(runs: Path, shard_set: Path, whole: Path, tmp_path: Path):
    options = two_epochs(shard_set, tmp_path, "--train.checkpoint_steps=1")
    first = launch_2(PROBE, tmp_path / "spy1", "kill 2", *options)
    assert first.returncode != 0
    second = run_script(PROBE, tmp_path / "spy2", "term 4", *options, "--resume")
    assert second.returncode == 75, second.stderr
    third = launch_2(PROBE, tmp_path / "spy3", "", *options, "--resume")
    assert third.returncode == 0, third.stderr
    assert max(read_spy(tmp_path / "spy2")) < max(read_spy(tmp_path / "spy3"))  # the last run did the rest only
    seen = read_spy(tmp_path / "spy1") | read_spy(tmp_path / "spy2") | read_spy(tmp_path / "spy3")
    assert seen == read_spy(runs / "spy-whole")


def test_killed_at_random_steps_and_resumed_at_one_two_and_one_processes(
    runs: Path, shard_set: Path, whole: Path, tmp_path: Path
):
    options = two_epochs(shard_set, tmp_path, "--train.checkpoint_steps=1")
    updates = len(read_spy(runs / "spy-whole"))
    first = random.randint(1, updates - 3)
    second = random.randint(first + 1, updates - 1)
    steps = f"killed at updates {first} and {second} of {updates}"
    killed = run_script(PROBE, tmp_path / "spy1", f"kill {first}", *options)
    assert killed.returncode == -9, steps
    killed = launch_2(PROBE, tmp_path / "spy2", f"kill {second}", *options, "--resume")
    assert killed.returncode != 0, steps
    rest = run_script(PROBE, tmp_path / "spy3", "", *options, "--resume")
    assert rest.returncode == 0, f"{steps}: {rest.stderr}"
    expected = read_spy(runs / "spy-whole")
    seen: dict = {}
    for spy in ("spy1", "spy2", "spy3"):
        if (tmp_path / spy).is_dir() and list((tmp_path / spy).iterdir()):
            part = read_spy(tmp_path / spy)
            complete = {at: keys for at, keys in part.items() if len(keys) == len(expected[at])}
            assert all(expected[at] == keys for at, keys in complete.items()), steps
            seen |= complete
    assert seen == expected, steps


def test_a_run_of_an_earlier_version_goes_on_with_its_rule(runs: Path, whole: Path, shard_set: Path, tmp_path: Path):
    """Its checkpoints say nothing of sizes: updates of an epoch are full ones, then what is left."""
    options = ["--shards", shard_set, "--out", tmp_path / "run", *TINY]
    first = run_script(PROBE, tmp_path / "spy1", "", *options, "--train.epochs=1")
    assert first.returncode == 0, first.stderr
    (path,) = (tmp_path / "run" / "checkpoints").glob("*/state.json")
    state = json.loads(path.read_text())
    assert state["progress"].pop("sizes") == "even" and state["progress"].pop("loss_rows") == 0
    path.write_text(json.dumps(state))
    more = [*options, "--train.epochs=2", "--train.checkpoint_steps=1", "--resume"]
    killed = run_script(PROBE, tmp_path / "spy2", "kill 5", *more)
    assert killed.returncode == -9 and "the last update of an epoch has only 16 samples" in killed.stderr
    last = run_script(PROBE, tmp_path / "spy3", "", *more)
    assert last.returncode == 0, last.stderr
    seen = read_spy(tmp_path / "spy2") | read_spy(tmp_path / "spy3")
    assert [len(seen[1, step]) for step in range(3)] == [20, 20, 16]
    assert sorted(key for keys in seen.values() for key in keys) == train_keys(shard_set)
    ours = read_spy(runs / "spy-whole")
    assert [len(ours[1, step]) for step in range(3)] == [18, 19, 19]  # a run that begins now
    newest = sorted((tmp_path / "run" / "checkpoints").glob("*/state.json"))[-1]
    assert json.loads(newest.read_text())["progress"]["sizes"] == "tail"


def test_a_window_and_geometry_on_the_device_train_too(shard_set: Path, tmp_path: Path):
    run = run_script(
        PROBE, tmp_path / "spy", "", "--shards", shard_set, "--out", tmp_path / "run", *TINY, "--train.epochs=1",
        "--data.order=window", "--data.window=2", "--data.geometry=device",
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert sorted(key for keys in read_spy(tmp_path / "spy").values() for key in keys) == train_keys(shard_set)
    again = posters_command(
        "train", "--shards", shard_set, "--out", tmp_path / "run", *TINY, "--train.epochs=2", "--resume"
    )
    (line,) = error_lines(again)
    assert again.returncode == 2 and "data.order" in line  # the rest of the epoch would be another


def test_sigterm_finishes_the_step_saves_and_says_how_to_go_on(shard_set: Path, tmp_path: Path):
    options = ["--shards", shard_set, "--out", tmp_path / "run", *TINY, "--train.epochs=1"]
    stopped = run_script(PROBE, tmp_path / "spy", "term 2", *options)
    assert stopped.returncode == 75, stopped.stderr
    assert "--resume continues" in stopped.stderr and "Traceback" not in stopped.stderr
    assert len((tmp_path / "spy" / "rank0.jsonl").read_text().splitlines()) == 2
    assert (tmp_path / "run" / "checkpoints" / "step-00000002").is_dir()
    again = posters_command("train", *options)
    assert again.returncode == 2 and "--resume" in error_lines(again)[0]  # nothing is overwritten
    resumed = posters_command("train", *options, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    done = posters_command("train", *options, "--resume")  # of a finished run: nothing to do, nothing broken
    assert done.returncode == 0, done.stderr


def test_stopped_after_the_last_update_of_an_epoch(whole: Path, runs: Path, shard_set: Path, tmp_path: Path):
    steps = len([at for at in read_spy(runs / "spy-whole") if at[0] == 0])
    options = ["--shards", shard_set, "--out", tmp_path / "run", *TINY, "--train.epochs=2"]
    assert run_script(PROBE, tmp_path / "spy", f"term {steps}", *options).returncode == 75
    resumed = run_script(PROBE, tmp_path / "spy", "", *options, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert read_spy(tmp_path / "spy") == read_spy(runs / "spy-whole")  # its validation was still to be done
    ours, theirs = tmp_path / "run/model/model.safetensors", whole / "model/model.safetensors"
    assert ours.read_bytes() == theirs.read_bytes()


def test_metrics_of_two_processes_are_those_of_one(double: Path, shard_set: Path, tmp_path: Path):
    arguments = ["--model", double / "model", "--shards", shard_set, "--split", "val", "--out"]
    one = posters_command("evaluate", *arguments, tmp_path / "one.json", "--batch-size", 16)
    assert one.returncode == 0, one.stderr
    two = launch_2("launch/evaluate.py", *arguments, tmp_path / "two.json", "--batch-size", 16)
    assert two.returncode == 0, two.stderr
    alone, together = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))
    trained = json.loads((double / "model" / "metrics-val.json").read_text())
    for other in (together, trained):  # and the validation during two-process training saw the same
        assert alone["num_samples"] == other["num_samples"]
        assert flat(other) == pytest.approx(flat(alone), abs=1e-6)


def flat(evaluation: dict) -> dict[str, float]:
    values = {"loss": evaluation["loss"], "mAP": evaluation["ranking"]["mAP"], "auc": evaluation["ranking"]["roc_auc"]}
    for row in evaluation["thresholds"]:
        values |= {f"{row['label']} {name}": value for name, value in row["metrics"].items()}
    for row in evaluation["per_genre"]:
        values |= {f"{row['genre']} {n}": v for n, v in row.items() if n != "genre" and v is not None}
    return values


def test_accumulation_clipping_cosine_and_a_linear_head(shard_set: Path, tmp_path: Path):
    run = posters_command(
        "train", "--shards", shard_set, "--out", tmp_path / "run", *TINY, "--train.epochs=1", "--train.accumulation=3",
        "--train.batch_size=28",
        "--optim.clip_norm=1", "--optim.schedule=cosine", "--model.head=linear", "--optim.name=adamw",
        "--train.precision=bf16", "--train.trackers={tensorboard: {}}",
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "precision bf16" in run.stderr
    assert list((tmp_path / "run" / "tensorboard").rglob("events*"))


def test_another_label_order_is_refused_on_resume(shard_set: Path, posters: Path, tmp_path: Path):
    options = [*TINY, "--train.epochs=1"]
    assert posters_command("train", "--shards", shard_set, "--out", tmp_path / "run", *options).returncode == 0
    other = tmp_path / "other"
    lines = (posters / "metadata.csv").read_text().replace("'Western'", "'Eastern'")
    (tmp_path / "meta.csv").write_text(lines)
    build = posters_command(
        "shards", "build", "--images", posters / "images", "--metadata", tmp_path / "meta.csv", "--out", other
    )
    assert build.returncode == 0, build.stderr
    resumed = posters_command("train", "--shards", other, "--out", tmp_path / "run", *options, "--resume")
    (line,) = error_lines(resumed)
    assert resumed.returncode == 2 and "Eastern" in line and "Western" in line
    evaluated = posters_command("evaluate", "--model", tmp_path / "run/model", "--shards", other)
    (line,) = error_lines(evaluated)
    assert evaluated.returncode == 2 and "Eastern" in line and "Western" in line


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"--shards": "nowhere"}, ["nowhere"]),
        ({"--optim.lrr": "3"}, ["optim.lr"]),
        ({"--model.name": "resnet5"}, ["resnet5", "did you mean"]),
        ({"--model.weights": "none.pth"}, ["none.pth"]),
        ({"--model.freeze": "[layer9]"}, ["layer9"]),
        ({"--train.precision": "fp16"}, ["fp16", "GPU"]),
    ],
)
def test_bad_input_is_one_line(shard_set: Path, tmp_path: Path, change: dict[str, str], words: list[str]):
    options = {"--shards": str(shard_set), "--out": str(tmp_path / "run"), **change}
    arguments = [part for pair in options.items() for part in pair]
    tiny = [option for option in TINY if option.partition("=")[0] not in change]
    run = posters_command("train", *tiny, *arguments)
    (line,) = error_lines(run)
    assert run.returncode == 2
    for word in words:
        assert word in line


def test_a_truncated_tar_is_refused_before_training(shard_set: Path, tmp_path: Path):
    folder = shutil.copytree(shard_set, tmp_path / "set")
    tar = folder / "train-00000.tar"
    tar.write_bytes(tar.read_bytes()[:-2000])
    run = posters_command("train", "--shards", folder, "--out", tmp_path / "run", *TINY)
    (line,) = error_lines(run)
    assert run.returncode == 2 and "train-00000.tar" in line and "truncated" in line
    assert not (tmp_path / "run").exists()


def test_two_runs_into_one_folder(shard_set: Path, tmp_path: Path):
    from filelock import FileLock

    (tmp_path / "run").mkdir()
    with FileLock(tmp_path / "run" / ".lock"):
        run = posters_command("train", "--shards", shard_set, "--out", tmp_path / "run", *TINY)
    (line,) = error_lines(run)
    assert run.returncode == 2 and "another process" in line


def foreign_log(run: Path) -> Path:
    (run / "log.csv").write_text("name,age\nx,1\n")
    return run / "log.csv"


def file_for_checkpoints(run: Path) -> Path:
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").write_text("mine")
    return run / "checkpoints"


@pytest.mark.parametrize(
    ("change", "words"),
    [(foreign_log, "cannot be continued"), (file_for_checkpoints, "is a file, so checkpoints cannot be saved")],
)
def test_what_is_not_ours_in_a_run_folder_is_left_alone(
    whole: Path, shard_set: Path, tmp_path: Path, change: Callable[[Path], Path], words: str
):
    foreign = change(shutil.copytree(whole, tmp_path / "run"))
    before = foreign.read_bytes()
    options = two_epochs(shard_set, tmp_path, "--train.epochs=3", "--resume")
    run = posters_command("train", *options)
    (line,) = error_lines(run)
    assert run.returncode == 2 and str(foreign) in line and words in line
    assert foreign.read_bytes() == before
