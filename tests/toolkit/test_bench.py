"""The benchmarks run: small, on drawn posters, without the peers that need venvs of their own."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import report_page
import timm
from browser_tools import LACKING
from safetensors.torch import save_file
from toolkit_helpers import run_python, run_script

from shards.build.run import BuildOptions, build_shards

PEERS = {
    "decode_only", "webdataset_float", "webdataset_uint8", "timm", "torchvision_image", "torchvision_jpeg",
    "torchcodec", "spdl", "litdata", "mosaic_streaming", "dali_cpu", "ffcv_jpeg", "ffcv_raw",
}  # fmt: skip


@pytest.mark.long
def test_the_loader_benchmark_measures_ours_against_peers(posters: Path, tmp_path: Path):
    run = run_python(
        "tests/bench/loader.py", "--images", posters / "images", "--json", tmp_path / "out.json",
        "--samples", 70, "--work", tmp_path / "work", "--sets", "short256",
        "--stacks", "decode_only,webdataset_uint8,torchvision,ours",
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    result = json.loads((tmp_path / "out.json").read_text())
    for column in ("ratios", "ratios_cpu"):
        assert set(result[column]) == PEERS
        measured = {name for name, ratio in result[column].items() if ratio is not None}
        assert measured == {"decode_only", "webdataset_uint8", "torchvision_image", "torchvision_jpeg"}
        assert all(result[column][name] > 0 for name in measured)
    for word in ("short256", "decode_only", "webdataset_uint8", "ours_device", "ours_cpu", "images/s", "first batch"):
        assert word in run.stdout
    assert str(tmp_path) not in (tmp_path / "out.json").read_text()


def test_bad_input_of_the_loader_benchmark_is_one_line(tmp_path: Path):
    for options in (["--images", tmp_path / "none"], ["--images", tmp_path], ["--stacks", "nonsense"]):
        run = run_script("tests/bench/loader.py", *options)
        assert run.returncode == 2 and "Traceback" not in run.stderr
        assert [line for line in run.stderr.splitlines() if line.startswith("error:")]


@pytest.mark.long
def test_the_real_trainer_takes_turns_with_bare_steps(posters: Path, tmp_path: Path):
    build_shards(BuildOptions(metadata=posters / "metadata.csv", images=posters / "images", out=tmp_path / "s"))
    run = run_script(
        "tests/bench/train_step.py", "--shards", tmp_path / "s", "--model", "test_resnet", "--batch", 8, "--size", 32,
        "--steps", 2, "--rounds", 1, "--precision", "no", "--sides", "64,80", "--json", tmp_path / "out.json",
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    result = json.loads((tmp_path / "out.json").read_text())
    assert list(result["sides"]) == ["64", "80"]
    for found in result["sides"].values():
        assert found["ratio"] == found["ours"] / found["resident"] > 0
        assert found["timm_ratio"] == found["timm"] / found["resident"] > 0
        assert found["verdict"].startswith("data ") or "limit" in found["verdict"]
        assert found["updates"] >= 2 and found["posters"] > 2 * 8
    options = ["tests/bench/train_step.py", "--shards", tmp_path / "s", "--batch", 4000]
    refused = run_script(*options)
    assert refused.returncode == 2 and "fewer than two updates" in refused.stderr.splitlines()[-1]


@pytest.mark.long
def test_decoding_threads_and_processes_take_turns_beside_a_launching_thread(posters: Path, tmp_path: Path):
    run = run_script(
        "tests/bench/decode_processes.py", "--images", posters / "images", "--json", tmp_path / "out.json",
        "--samples", 16, "--work", tmp_path / "work", "--sets", "stored", "--rounds", 1, "--seconds", 0.05,
        "--device", "cpu", "--model", "test_resnet",
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    found = json.loads((tmp_path / "out.json").read_text())["sets"]["stored"]
    modes = {"threads 1", "threads 2", "processes 1", "processes 2"}
    wide = {"threads 6", "threads 15", "processes 8"}
    assert set(found["real"]["0"]) == {"alone", *modes} and set(found["simulated"]["20000"]) == {"alone", *wide}
    assert set(found["model_error"]) == modes | wide and set(found["device"]) == {"resident", *modes, *wide}
    assert all(rate > 0 for rate in found["device"].values()) and all(s > 0 for s in found["seconds"].values())
    assert found["real"]["500"]["alone"]["images_s"] <= 500.5  # the imagined GPU is the limit
    assert "MODEL, not a measurement" in run.stdout


@pytest.mark.long
def test_the_prediction_benchmark_measures_ours_against_the_forward_pass_and_timm(posters: Path, tmp_path: Path):
    run = run_python(
        "tests/bench/predict.py", "--images", posters / "images", "--json", tmp_path / "out.json", "--samples", 40,
        "--work", tmp_path / "work", "--architecture", "test_resnet", "--size", 32, "--batch", 16, "--rounds", 3,
        "--stacks", "forward,ours_shards,timm",
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    result = json.loads((tmp_path / "out.json").read_text())
    assert not result["left_out"]
    assert set(result["ratios"]["ours_shards"]) == {"forward", "timm"}
    assert all(ratio > 0 for ratio in result["ratios"]["ours_shards"].values())
    assert "| ours_shards |" in run.stdout
    run = run_python(
        "tests/bench/predict.py", "--images", posters / "images", "--json", tmp_path / "compiled.json", "--samples", 40,
        "--work", tmp_path / "work", "--architecture", "test_resnet", "--size", 32, "--batch", 16, "--rounds", 3,
        "--stacks", "forward,ours_shards", "--compile", timeout=500,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    result = json.loads((tmp_path / "compiled.json").read_text())
    assert result["options"]["compile"] and not result["left_out"] and result["ratios"]["ours_shards"]["forward"] > 0
    run = run_script("tests/bench/predict.py", "--stacks", "nonsense")
    assert run.returncode == 2 and "Traceback" not in run.stderr and "there is no 'nonsense'" in run.stderr


def test_shuffle_quality_is_that_of_chance_for_the_global_order_only():
    run = run_python("tests/bench/shuffle.py", "--shards", 20, "--samples-per-shard", 100, "--batch", 50)
    assert run.returncode == 0, run.stderr
    rows = {
        cells[1].strip(): [float(cell) for cell in cells[2:5]]
        for line in run.stdout.splitlines()
        if len(cells := line.split("|")) == 6 and cells[2].strip()[0].isdigit()
    }
    same, again, touched = rows["global"]
    assert 0.9 < same < 1.1 and 0.9 < again < 1.1 and touched == 20
    same, again, touched = rows["window 4"]
    assert same > 3 and again > 1.5 and touched < 16


@pytest.mark.long
def test_the_text_detection_benchmark_runs(posters: Path, tmp_path: Path):
    pytest.importorskip("rapidocr", reason="rapidocr is not installed (extra `clean`)")
    run = run_python(
        "tests/bench/text_detection.py", "--images", posters / "images", "--samples", 1, "--rounds", 1,
        "--json", tmp_path / "out.json",
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    ways = json.loads((tmp_path / "out.json").read_text())["ways"]
    assert ways["rapidocr"]["faster_than_rapidocr"] == 1.0
    assert all(0 <= row["recall_drawn"] <= 1 and row["seconds"] > 0 for row in ways.values())
    assert any(name.startswith("ours") and name.endswith("no line") for name in ways)


@pytest.mark.long
@pytest.mark.skipif(bool(LACKING), reason=LACKING)
def test_the_page_of_a_report_is_measured_and_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    small = ["--posters", "60", "--genres", "2", "--rounds", "1"]
    assert report_page.main([*small, "--json", str(tmp_path / "out.json")]) == 0
    found = json.loads((tmp_path / "out.json").read_text())
    assert "| page, MB | " in capsys.readouterr().out and report_page.missed(found) == []
    for name, limit in report_page.LIMITS.items():
        assert 0 < found[name] < limit
        assert report_page.missed({**found, name: limit}) == [name]
    assert report_page.main(["--posters", "3"]) == 2


def study(posters: Path, tmp_path: Path, *options: object) -> subprocess.CompletedProcess[str]:
    """The study of two recipes, small."""
    if not (tmp_path / "weights.safetensors").exists():
        save_file(timm.create_model("test_resnet", num_classes=3).state_dict(), tmp_path / "weights.safetensors")
    small = ("model.name=test_resnet", "data.image_size=32", "train.epochs=2", "train.batch_size=16")
    return run_script(
        "tests/bench/study.py", "--metadata", posters / "metadata.csv", "--images", posters / "images",
        "--weights", tmp_path / "weights.safetensors", "--out", tmp_path / "out", "--precision", "no",
        "--only", "reference", "best", "--override", *small, "train.feature_views=1", "model.hidden=[8]", *options,
    )  # fmt: skip


@pytest.mark.long
def test_the_study_compares_recipes_with_the_reference(posters: Path, tmp_path: Path):
    run = study(posters, tmp_path)
    assert run.returncode == 0, run.stderr
    rows = json.loads((tmp_path / "out" / "study.json").read_text())["rows"]
    assert {"reference", "best", "prevalence", "always top-2"} <= set(rows)
    for name, splits in rows.items():
        for metric, found in splits[0].items():
            assert 0 <= found["low"] <= found["value"] <= found["high"] <= 1, (name, metric)
    assert rows["reference"][0]["mAP"]["difference"] == [0, 0, 0]
    text = (tmp_path / "out" / "study.md").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("| best | x ")]
    ratio = float(line.split("|")[2].split()[1].rstrip(";"))
    assert ratio == pytest.approx(rows["best"][0]["mAP"]["value"] / rows["reference"][0]["mAP"]["value"], abs=0.006)
    compared = json.loads((tmp_path / "out" / "comparison" / "compare.json").read_text())["models"]
    assert [model["name"].partition("-")[0] for model in compared] == ["reference", "best"]
    for name, model in zip(("reference", "best"), compared, strict=True):
        assert model["metrics"]["mAP"]["value"] == pytest.approx(rows[name][0]["mAP"]["value"])

    # A changed recipe is another run: the table is not the old one's, whose runs stay as they were.
    trained = sorted((tmp_path / "out" / "split-0").glob("*/model/model.safetensors"))
    before = [path.stat().st_mtime_ns for path in trained]
    assert study(posters, tmp_path, "optim.lr=0.5").returncode == 0
    assert [path.stat().st_mtime_ns for path in trained] == before
    assert len(sorted((tmp_path / "out" / "split-0").glob("*/model/model.safetensors"))) == 4
    assert json.loads((tmp_path / "out" / "study.json").read_text())["rows"]["best"] != rows["best"]


@pytest.mark.parametrize(
    ("options", "words"),
    [((), "error: "), (("--only", "none such"), "no recipe 'none such'"), (("--splits", 0), "--splits")],
)
def test_bad_input_of_the_study_is_one_line(tmp_path: Path, options: tuple[object, ...], words: str):
    none = tmp_path / "none"
    run = run_script(
        "tests/bench/study.py", "--metadata", none, "--images", none, "--weights", none, "--out", tmp_path / "o",
        *options,
    )  # fmt: skip
    assert run.returncode == 2 and words in run.stderr.splitlines()[-1], run.stderr
    assert "Traceback" not in run.stderr


def test_every_recipe_of_the_study_is_a_valid_configuration():
    run = run_python(
        "-c",
        "import sys; sys.path.insert(0, 'tests/bench'); from study_recipes import recipes\n"
        "from toolkit.cli.commands import read\n"
        "rows = recipes(fine_tune=True)\n"
        "assert len({r.name for r in rows}) == len(rows)\n"
        "for r in rows:\n"
        "    args = ['--config=configs/' + r.config, *r.overrides, '--shards=s', '--out=o']\n"
        "    read(['train', *args])\n"
        "print(len(rows))",
    )
    assert run.returncode == 0 and int(run.stdout) > 15, run.stderr


@pytest.mark.long
def test_growth_is_measured_on_sets_and_builds_of_several_sizes(tmp_path: Path):
    run = run_python(
        "tests/bench/scale.py", "--samples", "2000,50000", "--posters", 30, "--work", tmp_path,
        "--json", tmp_path / "out.json",
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    result = json.loads((tmp_path / "out.json").read_text())
    small, large = result["loading"]
    assert (small["samples"], small["shards"], large["samples"], large["shards"]) == (2000, 2, 50_000, 50)
    for row in (small, large):  # what the project promises: few bytes on disk, none of a sample's in memory
        assert (row["manifest_bytes"] + row["table_bytes"]) / row["samples"] < 30
        assert row["open_seconds"] > 0 and row["global_step_us"] > 0 and row["window_step_us"] > 0
        assert row["first_open_seconds"] > 0 and row["unchecked_open_seconds"] > 0
    grown = large["memory_bytes"] - small["memory_bytes"]
    assert grown < 4096 * (large["shards"] - small["shards"]) + (1 << 20)
    (built,) = result["building"]
    assert built["posters"] == 30 and built["images_per_second"] > 0 and built["memory_bytes"] > 1 << 20
    assert "| 50,000 | 50 |" in run.stdout and "images/s" in run.stdout
    assert str(tmp_path) not in (tmp_path / "out.json").read_text()


@pytest.mark.long
def test_timms_training_and_ours_are_compared_on_the_same_tars(posters: Path, tmp_path: Path):
    options = (
        "tests/bench/timm_multilabel.py", "--metadata", posters / "metadata.csv", "--images", posters / "images",
        "--posters", 80, "--samples-per-shard", 8, "--model", "test_resnet", "--size", 32, "--epochs", 2, "--batch", 8,
        "--workers", 2, "--out", tmp_path / "out", "--json", tmp_path / "out.json",
    )  # fmt: skip
    run = run_python(*options, timeout=480)
    assert run.returncode == 0, run.stderr
    result = json.loads((tmp_path / "out.json").read_text())
    assert len(result["speed"]["ours"]) == len(result["speed"]["timm"]) == 2 and result["speed"]["ratio"] > 0
    sizes = result["setting"]["samples"]
    assert 60 < sum(sizes.values()) <= 80  # but for images that cannot be read
    for splits in result["samples"].values():  # at 1 and 2 ranks
        for split, sides in splits.items():
            assert sides["ours"] == {"handed_out": sizes[split], "missed": 0, "repeated": 0}
            theirs = sides["timm"]
            assert theirs["handed_out"] == sizes[split] - theirs["missed"] + theirs["repeated"] > 0
    assert result["samples"]["1"]["val"]["timm"] == result["samples"]["1"]["val"]["ours"]
    assert result["samples"]["2"]["train"]["timm"]["repeated"] > 0
    for metric, row in result["comparison"].items():
        assert row["low"] <= row["difference"] <= row["high"], metric
        both = [result["by_timms_evaluator"][side][metric] for side in ("timm", "ours")]
        assert all(0 <= value <= 1 for value in (row["mine"], row["theirs"], *both))
    # Both evaluators have the same average precision; timm's counts a genre without positives as 0.
    known = 1 - result["setting"]["genres_without_test_poster"] / result["setting"]["genres"]
    assert result["by_timms_evaluator"]["ours"]["mAP"] == pytest.approx(
        result["comparison"]["mAP"]["mine"] * known, abs=0.02
    )
    assert (
        "| images/s, median of the epochs |" in run.stdout and str(tmp_path) not in (tmp_path / "out.json").read_text()
    )
    again = run_script(*options)
    assert again.returncode == 2 and again.stderr.splitlines()[-1].startswith("error: --out ")


def test_bad_input_of_the_comparison_with_timm_is_one_line(posters: Path, tmp_path: Path):
    on_set = ("--metadata", posters / "metadata.csv", "--images", posters / "images", "--out", tmp_path / "out")
    for options, words in (((), "--posters 400: only"), (("--epochs", 0), "--epochs 1")):
        run = run_script("tests/bench/timm_multilabel.py", *on_set, *options)
        assert run.returncode == 2 and words in run.stderr.splitlines()[-1], run.stderr
        assert "Traceback" not in run.stderr and not (tmp_path / "out").exists()


def rehearse(posters: Path, tmp_path: Path, *options: object) -> subprocess.CompletedProcess[str]:
    """A rehearsal with a small model."""
    if not (tmp_path / "weights.safetensors").exists():
        save_file(timm.create_model("test_resnet", num_classes=3).state_dict(), tmp_path / "weights.safetensors")
    return run_python(
        "tests/bench/rehearsal.py", "--images", posters / "images", "--metadata", posters / "metadata.csv",
        "--weights", tmp_path / "weights.safetensors", "--out", tmp_path / "out", "--posters", 300, "--epochs", 1,
        "--updates", 40, "--override", "model.name=test_resnet", "model.hidden=[8]", "data.image_size=32", *options,
        timeout=600,
    )  # fmt: skip


@pytest.mark.long
def test_the_rehearsal_runs_all_steps_once_and_misses_nothing(posters: Path, tmp_path: Path):
    run = rehearse(posters, tmp_path)
    assert run.returncode == 0, run.stderr
    state = json.loads((tmp_path / "out" / "rehearsal.json").read_text())
    assert state["resumed"] <= state["killed"] < state["updates"] and state["updates"] >= 40
    assert 0 < state["rejected"] < 30  # the drawn set has some spoilt images, and each is repeated
    for name, cost in state["steps"].items():
        assert cost["cpu_seconds"] > 0 and cost["images"] > 0 and cost["output_bytes"] > 0, name
        assert cost["pss_bytes"] >= cost["own_bytes"] > 1 << 20 and f"| {name} |" in run.stdout
    assert str(tmp_path) not in (tmp_path / "out" / "rehearsal.json").read_text()

    again = rehearse(posters, tmp_path)  # nothing is run again
    assert again.returncode == 0 and again.stdout == run.stdout and "build" not in again.stderr
    other = rehearse(posters, tmp_path, "--posters", 200)
    assert other.returncode == 2 and "other options" in other.stderr.splitlines()[-1]

    log = tmp_path / "out" / "run-tuned" / "log.csv"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:5] + lines[6:]))
    lacking = rehearse(posters, tmp_path)
    assert lacking.returncode == 1 and "log.csv: 1 missing (5)" in lacking.stderr.splitlines()[-1]
    log.write_text("".join(lines))
    next((tmp_path / "out" / "predictions").rglob("*.parquet")).unlink()
    lacking = rehearse(posters, tmp_path)
    assert lacking.returncode == 1 and "the predictions: " in lacking.stderr.splitlines()[-1]


def test_bad_input_of_the_rehearsal_is_one_line(tmp_path: Path):
    places = ["--images", tmp_path / "none", "--metadata", tmp_path / "none", "--weights", "w", "--out", tmp_path / "o"]
    for options, words in ((places, "not found"), ((), "--images is required"), ((*places, "--epochs", 0), "from 1")):
        run = run_script("tests/bench/rehearsal.py", *options)
        assert run.returncode == 2 and words in run.stderr.splitlines()[-1], run.stderr
        assert "Traceback" not in run.stderr
