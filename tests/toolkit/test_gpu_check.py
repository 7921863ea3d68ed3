"""The check of a GPU runs: tiny, on a CPU. Its wheels, pieces, limits and goals do what they say."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from toolkit_helpers import ROOT, clean_env, run_python, run_script

BENCH = ROOT / "tests" / "bench"
ITEMS = ("tests", "train", "predict", "study", "crews", "precision", "text", "processes")


@pytest.fixture(autouse=True)
def bench_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the programs in tests/bench import each other by."""
    monkeypatch.syspath_prepend(str(BENCH))


def check(*options: object, timeout: float = 500) -> subprocess.CompletedProcess[str]:
    """The command as a user types it, with this Python."""
    command = ["bash", str(BENCH / "gpu_check.sh"), *map(str, options)]
    return subprocess.run(
        command, capture_output=True, text=True, env={**clean_env(), "PYTHON": sys.executable}, timeout=timeout
    )


def checked(out: Path, item: str) -> dict[str, Any]:
    """The result of an item, without failures, and with what every result has."""
    result: dict[str, Any] = json.loads((out / f"{item}.json").read_text())
    assert not result["failures"] and result["status"] in ("ran", "left out"), result
    assert {"device", "driver", "cuda", "torch", "timm", "python", "date", "commands"} <= set(result)
    assert result["commands"].keys() == result["figures"].keys() and (result["figures"] or result["left_out"])
    assert str(out.parent) not in json.dumps(result) and str(ROOT) not in json.dumps(result)
    return result


@pytest.mark.long
def test_the_check_runs_on_posters_from_shards(shard_set: Path, tmp_path: Path):
    run = check("--tiny", "--data", shard_set, "--out", tmp_path / "out", "--items", "tests,train")
    assert run.returncode == 0, run.stdout + run.stderr
    tests = checked(tmp_path / "out", "tests")["figures"]["tests"]
    assert tests["failed"] == 0 and tests["passed"] + tests["skipped"] == len(tests["tests"]) >= 6
    assert any("test_waits::test_training_on_a_gpu_waits_nowhere" in name for name in tests["tests"])
    train = checked(tmp_path / "out", "train")
    assert not train["drawn"] and train["posters"] == 90  # of a larger set
    ((side, found),) = train["figures"]["48 pixels"]["sides"].items()
    assert side == "48" and set(found["by_threads"]) == {"1", "2"}
    assert "timm" in found["by_threads"]["1"] and "timm" not in found["by_threads"]["2"]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [row["item"] for row in summary["items"]] == ["tests", "train"]
    assert "training ÷ resident, 48 pixels, 1 threads (default)" in run.stdout
    assert sorted(path.stem for path in (tmp_path / "out").iterdir()) == ["summary", "tests", "train"]


@pytest.mark.long
def test_every_item_of_the_check_runs(posters: Path, tmp_path: Path):
    """Also the pieces: they are made of posters, and each is small."""
    made = run_python(
        BENCH / "gpu_pieces.py", "--images", posters / "images", "--metadata", posters / "metadata.csv",
        "--out", tmp_path / "pieces", "--limit-mib", 1,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert list((tmp_path / "pieces").glob("posters-*/*.tar"))
    run = check(
        "--tiny", "--data", tmp_path / "pieces", "--out", tmp_path / "out", "--minutes", 40, timeout=2400
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    results = {item: checked(tmp_path / "out", item) for item in ITEMS}
    (prediction,) = results["predict"]["figures"].values()
    assert set(prediction["ratios"]["ours_shards"]) == {"forward", "decode", "timm"} and prediction["samples"] == 60
    threads = prediction["profile"]["threads"]
    assert sum(threads["MainThread"].values()) == pytest.approx(1, abs=0.01)
    assert any(part.startswith("toolkit.inference.forward:") for part in threads["MainThread"])
    assert prediction["profile"]["loader"]["decode_cpu"] > 0
    (rows,) = (step["rows"] for step in results["study"]["figures"].values())
    assert any("fine-tuned" in name for name in rows)
    (pair,) = results["processes"]["figures"].values()
    assert pair["same_samples_in_each_update"] and pair["same_rows"] and pair["updates"] > 1
    assert set(results["precision"]["left_out"]) == {
        "predict fp16", "train fp16", "predict compiled", "train compiled"
    }  # fmt: skip
    assert "nccl" in results["processes"]["left_out"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--data", "none-such"), "--data none-such is not a folder"),
        (("--wheels", "none-such"), "--wheels none-such is not a folder"),
        (("--items", "tests,nonsense"), "there is no 'nonsense'; there are tests, train"),
        (("--items", ","), "there is no ''"),
        (("--minutes", "0"), "--minutes must be more than 0"),
    ],
)
def test_bad_input_of_the_check_is_one_line(options: tuple[str, ...], words: str):
    run = check(*options)
    assert run.returncode == 2 and words in run.stderr and len(run.stderr.splitlines()) == 1, run.stderr


@pytest.mark.parametrize(
    ("program", "options", "words"),
    [
        ("gpu_pieces.py", ("--images", ".", "--metadata", "m", "--out", __file__), "Not a directory"),
        ("gpu_pieces.py", ("--images", ".", "--metadata", "m", "--out", "o", "--limit-mib", "nan"), "mebibytes"),
        ("gpu_wheels.py", ("--python", "banana", "--out", "o"), "such as 3.12, not banana"),
        ("gpu_wheels.py", ("--python", "3.12", "--out", "o", "--limit-mib", "-1"), "mebibytes"),
        ("gpu_wheels.py", ("--python", "3.12", "--out", "o", "--lacks-only", "none-such"), "none-such is not a file"),
        ("gpu_wheels.py", ("--python", "3.12", "--out", __file__), "is not a folder"),
        ("decode_processes.py", ("--sets", "nope"), "there is no 'nope'"),
        ("decode_processes.py", ("--rounds", "0"), "more than 0"),
        ("decode_processes.py", ("--seconds", "-1"), "more than 0"),
        ("decode_processes.py", ("--device", "banana"), "device 'banana' cannot be used"),
        ("step_ops.py", ("--shards", "none-such"), "none-such"),
        ("step_ops.py", ("--shards", "none-such", "--updates", "0"), "from 1"),
        ("rehearsal.py", ("--table", "setup.cfg"), "cannot be read"),
        ("rehearsal.py", ("--table", "tests/kept/expected.json"), "no results of a rehearsal"),
    ],
)
def test_bad_input_of_the_other_programs_is_one_line(program: str, options: tuple[str, ...], words: str):
    run = run_script(f"tests/bench/{program}", *options)
    assert run.returncode == 2 and words in run.stderr.splitlines()[-1] and "Traceback" not in run.stderr, run.stderr


def test_a_folder_that_cannot_be_written_and_a_file_that_is_no_tar_are_one_line(tmp_path: Path):
    (tmp_path / "other files").mkdir()
    (tmp_path / "other files" / "a.tar").write_text("x")
    for options, words in (
        (("--out", __file__), "cannot be written: File exists"),
        (("--data", tmp_path / "other files"), "a.tar cannot be read as a tar"),
    ):
        run = check(*options, "--items", "text", "--minutes", "0.4")
        assert run.returncode == 2 and words in run.stderr and len(run.stderr.splitlines()) == 1, run.stderr


def fake_wheel(folder: Path, name: str, tags: str, module: str = "") -> Path:
    """A wheel with one module."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}-{tags}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{module or name.split('-')[0]}.py", "VALUE = 7\n")
    return path


@pytest.fixture
def needs(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], None]:
    """Say what setup.cfg needs."""
    from gpu import wheels

    return lambda names: monkeypatch.setattr(wheels, "requirements", lambda: names)


def test_what_a_python_lacks_comes_from_the_wheels(needs: Callable[[dict[str, str]], None], tmp_path: Path):
    from gpu.wheels import unpack

    fake_wheel(tmp_path / "w", "no_such_package-1.2", "py3-none-any")
    fake_wheel(tmp_path / "w", "numpy-99.0", "py3-none-any")
    fake_wheel(tmp_path / "w", "torch-99.0", "py3-none-any")
    fake_wheel(tmp_path / "w", "filelock-99.0", "py2.py3-none-any")
    needs({"no-such-package": "1.0", "numpy": "2.0", "torch": "2.6", "filelock": "99"})
    assert unpack(tmp_path / "w", tmp_path / "site") == ["filelock 99.0", "no-such-package 1.2"]
    assert sorted(path.name for path in (tmp_path / "site").iterdir()) == ["filelock.py", "no_such_package.py"]


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ("cp36-cp36m-manylinux1_x86_64", "no_such_package-1.2-cp36-cp36m-manylinux1_x86_64.whl is not for Python 3"),
        ("py3-none-manylinux_2_999_x86_64", "is not for Python 3"),
        ("", "lacks no-such-package 1.0 (or has an older one): make wheels with tests/bench/gpu_wheels.py"),
    ],
)
def test_wheels_that_do_not_do_are_one_line(
    needs: Callable[[dict[str, str]], None], tmp_path: Path, tags: str, words: str
):
    from gpu.wheels import Unusable, unpack

    if tags:
        fake_wheel(tmp_path / "w", "no_such_package-1.2", tags)
    needs({"no-such-package": "1.0"})
    with pytest.raises(Unusable) as raised:
        unpack(tmp_path / "w", tmp_path / "site")
    assert words in str(raised.value) and "\n" not in str(raised.value)


def test_a_wheel_for_an_older_abi3_and_an_older_glibc_fits():
    from gpu.wheels import fits

    assert fits(Path("a-1-cp38-abi3-manylinux2014_x86_64.manylinux_2_17_x86_64.whl"))
    assert not fits(Path("a-1-cp38-cp38-manylinux2014_x86_64.whl"))
    assert not fits(Path("a-1-cp38-abi3-macosx_11_0_arm64.whl"))


def test_the_wheels_are_those_of_setup_cfg_without_torch():
    from gpu_wheels import names_for

    names = names_for("3.12")
    assert {"jsonargparse", "typeshed-client", "simplejpeg", "webdataset", "timm", "rapidocr", "pytest"} <= set(names)
    assert names["simplejpeg"] and not {"torch", "torchvision", "triton"} & set(names)
    assert not [name for name in names if name.startswith("nvidia-")]


def test_pieces_are_small(tmp_path: Path):
    from gpu.pieces import deal

    for number, size in enumerate((600, 500, 300, 2000, 100)):
        (tmp_path / f"{number}").write_bytes(bytes(size * 1024))
    pieces = deal(sorted(tmp_path.iterdir()), 1.0)
    assert [[path.name for path in piece] for piece in pieces] == [["0"], ["1", "2"], ["3"], ["4"]]


def test_a_step_that_fails_or_hangs_hides_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from argparse import Namespace

    import gpu_check
    from gpu.items import Item, Setting, Step

    def step(name: str, code: str) -> Step:
        figures = tmp_path / "figures" / f"{name}.json"
        return Step(name, [sys.executable, "-c", code, str(figures)], figures)

    write = "import sys; open(sys.argv[1], 'w').write('{\"ways\": {}}')"
    steps = [
        step("bad", "print('the reason'); raise SystemExit(3)"),
        step("good", write),
        step("slow", f"{write}; " * 9),
    ]
    steps.append(step("hangs", "import time; time.sleep(99)"))
    setting = Setting(tmp_path, {"gpus": 1}, None, False)
    monkeypatch.setattr(gpu_check, "LEAST", 0.5)
    item = Item("text", "", 4.0, lambda setting: steps)
    run = gpu_check.Check(Namespace(minutes=5.0, data=None), tmp_path, clean_env())
    result = gpu_check.run_item(run, item, setting)
    assert result["status"] == "failed" and set(result["figures"]) == {"good", "slow"}
    assert result["failures"]["bad"] == "status 3: the reason"
    assert (result["failures"] | result["left_out"])["hangs"] in ("it took longer than its limit", "no time was left")
    late = gpu_check.run_item(run, Item("text", "", 0.4, lambda setting: steps), setting)
    assert late["status"] == "left out" and set(late["left_out"].values()) == {"no time was left"}


def test_goals_are_judged_by_the_smaller_limit():
    from gpu.goals import FOUND, verdict

    def found(forward: float, decode: float, timm: float) -> list[str]:
        step = {
            "ratios": {"ours_shards": {"forward": forward, "decode": decode, "timm": timm}},
            "images_per_second": {},
        }
        return [verdict(one, True) for one in FOUND["predict"]({"images": step})]

    assert found(0.5, 0.91, 2.1) == ["met", "met"]
    assert found(0.89, 0.5, 1.9) == ["MISSED", "MISSED"]
