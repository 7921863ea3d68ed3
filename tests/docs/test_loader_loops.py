"""The programs of docs/guides/loader.md and loader-adaptors.md run, are killed, and continue at another world size."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forked import ROOT, run_forked
from toolkit_helpers import clean_env

GUIDE, ADAPTORS = (
    re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs" / "guides" / name).read_text(encoding="utf-8"), re.M | re.S)
    for name in ("loader.md", "loader-adaptors.md")
)
#: Name of a program → its text, as it stands on a page.
PROGRAMS = dict(zip(("example", "pytorch", "accelerate", "lightning", "timm"), [GUIDE[0], *ADAPTORS], strict=True))
if not hasattr(importlib.import_module("timm.task"), "MultiLabelClassificationTask"):
    del PROGRAMS["timm"]  # timm before 1.0.31
#: What a program of the pages has → what makes it a training of seconds. Its updates have 9 or 10 samples, so that two
#: and three processes have different numbers of rows.
SMALL = {
    '"vit_small_patch16_224"': '"test_vit", img_size=32',
    'image_size": 224': 'image_size": 32',
    "image_size=224": "image_size=32",
    "batch_size=64": "batch_size=10",
    "% 100 ==": "% 2 ==",
    "every_n_train_steps=100": "every_n_train_steps=2",
}
#: (epoch, step) of the batch at which both processes of a run are killed.
KILLED_AT = (1, 3)
#: (epoch, step) of the first update that is not in the last state before: states are saved after every second update,
#: by the example after every epoch.
CONTINUED_AT = {name: (1, 0) if name == "example" else (1, 2) for name in PROGRAMS}
PROBES = ("accelerate", "lightning")


def small(text: str) -> str:
    for large, little in SMALL.items():
        text = text.replace(large, little)
    assert not re.search(r"_224|[= ]224|_size=64|100", text)
    return text


@pytest.fixture(scope="module")
def folder(drawn_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All runs of all programs, made by one process that has imported the frameworks once."""
    pytest.importorskip("lightning")
    folder = tmp_path_factory.mktemp("loops")
    plan: list[dict[str, Any]] = []
    for name, text in PROGRAMS.items():
        program = folder / f"{name}.py"
        program.write_text(small(text), encoding="utf-8")
        for run, size, start in (("whole", 2, ""), ("killed", 2, ""), ("on 1", 1, "killed"), ("on 3", 3, "killed")):
            plan.append(
                {
                    "program": str(program), "folder": str(folder / name / run), "world_size": size,
                    "start": start and str(folder / name / start), "kill": KILLED_AT if run == "killed" else None,
                }
            )  # fmt: skip
    for name, size in zip(PROBES, (2, 1), strict=True):
        program = ROOT / "tests" / "toolkit" / f"probe_{name}.py"
        place = str(folder / name / "probe")
        plan.append({"program": str(program), "folder": place, "world_size": size, "start": "", "kill": None})
    for made in plan:
        if not made["start"]:
            Path(made["folder"]).mkdir(parents=True)
            (Path(made["folder"]) / "SHARDS").symlink_to(drawn_set)
    (folder / "plan.json").write_text(json.dumps(plan))
    done = run_forked([ROOT / "tests" / "toolkit" / "probe_loops.py", folder / "plan.json"], [clean_env()], 500)
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines()]
    for made, result in zip(plan, results, strict=False):
        said = "\n".join(path.read_text(errors="replace") for path in sorted(Path(made["folder"]).glob("rank*.log")))
        codes = set(result["codes"])  # a process may fail because the other one is killed
        assert (-9 in codes and 0 not in codes) if made["kill"] else codes == {0}, f"{made} {codes}\n{said}"
    assert len(results) == len(plan)
    return folder


def updates(run: Path, split: str = "train") -> dict[tuple[int, int], list[str]]:
    """(epoch, step) → the keys of the samples of the update in their order. They are dealt to the ranks in turn."""

    def lines(rank: Path) -> Iterator[dict[str, Any]]:
        return (line for line in map(json.loads, rank.read_text().splitlines()) if line["split"] == split)

    found: dict[tuple[int, int], list[str]] = {}
    for batches in zip_longest(*map(lines, sorted(run.glob("rank*.jsonl")))):
        (place,) = {(batch["epoch"], batch["step"]) for batch in batches}
        assert place not in found
        found[place] = [key for row in zip_longest(*(batch["keys"] for batch in batches)) for key in row if key]
    return found


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_killed_training_continues_with_the_same_samples(name: str, folder: Path):
    whole, killed = updates(folder / name / "whole"), updates(folder / name / "killed")
    assert list(whole) == [(epoch, step) for epoch in range(2) for step in range(6)]
    for epoch in range(2):
        keys = [key for place, update in whole.items() if place[0] == epoch for key in update]
        assert len(keys) == len(set(keys)) == 56
    assert list(killed) == [place for place in whole if place < KILLED_AT]
    for run in ("on 1", "on 3"):
        continued = updates(folder / name / run)
        assert next(iter(continued)) == CONTINUED_AT[name]
        before = {place: keys for place, keys in killed.items() if place < CONTINUED_AT[name]}
        assert list((before | continued).items()) == list(whole.items())


@pytest.mark.parametrize("name", ["pytorch", "accelerate", "lightning"])
def test_predictions_do_not_depend_on_the_kill_or_the_world_size(name: str, folder: Path):
    """They are those of the weights: loss, model and optimiser continued exactly too. Each sample is predicted once."""
    whole, *others = (
        json.loads((folder / name / run / "predictions.json").read_text()) for run in ("whole", "on 1", "on 3")
    )
    keys = [key for update in updates(folder / name / "whole", "test").values() for key in update]
    assert [key for _, key, _ in whole] == keys and len(set(keys)) == 19
    assert [index for index, _, _ in whole] == list(range(19))
    for other in others:
        assert [row[:2] for row in other] == [row[:2] for row in whole]
        np.testing.assert_allclose([row[2] for row in other], [row[2] for row in whole], rtol=0, atol=1e-5)


def test_all_frameworks_train_the_same_model(folder: Path):
    """The rule for the loss gives one update, whoever computes it."""
    ours, *others = (
        np.array([row[2] for row in json.loads((folder / name / "whole" / "predictions.json").read_text())])
        for name in ("pytorch", "accelerate", "lightning")
    )
    for other in others:
        np.testing.assert_allclose(other, ours, rtol=0, atol=1e-5)


@pytest.mark.skipif("timm" not in PROGRAMS, reason="timm before 1.0.31 has no multi-label training")
def test_timms_metrics_do_not_depend_on_the_kill_or_the_world_size(folder: Path):
    whole, *others = (
        json.loads((folder / "timm" / run / "metrics.json").read_text()) for run in ("whole", "on 1", "on 3")
    )
    assert set(whole) == {"loss", "map", "micro_f1", "macro_f1", "sample_f1"}
    for other in others:
        assert other == pytest.approx(whole, abs=1e-4)
    keys = [key for update in updates(folder / "timm" / "on 3", "test").values() for key in update]
    assert len(keys) == len(set(keys)) == 19


def test_what_the_page_says_of_accelerate(folder: Path):
    facts = json.loads((folder / "accelerate" / "probe" / "facts.json").read_text())
    assert facts["the prepared loader is the loader"]
    assert (facts["samples through a prepared DataLoader"], facts["samples"]) == (30, 56)
    assert facts["learning rate after an update"] == [0.25]  # two halvings: one for each process
    one, three = facts["weights with accumulation 1 and 3"]
    assert one != 0 and three == pytest.approx(one, rel=1e-5)


def test_what_the_page_says_of_lightning(folder: Path):
    facts = json.loads((folder / "lightning" / "probe" / "facts.json").read_text())
    first, second = ([[epoch, step] for step in range(6)] for epoch in range(2))
    assert facts["before an error"] == first[:3]
    assert facts["after its checkpoint"] == first[4:]  # update 3 is left out
    assert facts["after the checkpoint of an epoch"] == second
    assert facts["after the checkpoint of the last update of an epoch"] == second
    assert facts["limited"] == first[:2] + second[:2]
    assert facts["new loaders"] == first + second
    one, three = facts["weights with accumulation 1 and 3"]
    assert one != 0 and three == pytest.approx(one, rel=1e-5)


def test_the_other_programs_of_the_guide_run(
    drawn_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    Path("SHARDS").symlink_to(drawn_set)
    names: dict[str, Any] = {}
    evaluation, transform = GUIDE[1:]
    exec(compile(evaluation, "docs/guides/loader.md", "exec"), names)
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [str(n) for n in range(19)]
    exec(compile(transform, "docs/guides/loader.md", "exec"), names)
    with names["loader"]:
        assert names["batch"].images.shape == (56, 3, 128, 128)
        assert "(56, 3, 128, 128)" in capsys.readouterr().out.replace(
            "torch.Size([56, 3, 128, 128])", "(56, 3, 128, 128)"
        )
        assert [found["id"] for found in names["batch"].fields["json"]] == names["batch"].keys
