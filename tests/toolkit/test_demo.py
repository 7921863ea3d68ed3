"""The demo, small: it ends, and everything it names is there."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image
from toolkit_helpers import posters_command

from toolkit.model_folder import load_model_folder


def test_demo_ends_in_things_to_look_at(tmp_path: Path):
    out = tmp_path / "demo"
    run = posters_command("demo", "--out", out, "--posters", 60)
    assert run.returncode == 0, run.stderr
    named = [
        Path(line.split(maxsplit=1)[1].split(" (")[0]) for line in run.stdout.splitlines() if str(out) in line
    ]
    paths = [path for path in named if path.is_absolute() and "predict -m" not in str(path)]
    assert len(paths) >= 7
    for path in paths:
        assert path.exists(), path
    with Image.open(out / "predictions.png") as picture:
        assert picture.width > 500
    assert json.loads((out / "run/model/metrics-test.json").read_text())["split"] == "test"
    assert "Metrics on test" in (out / "run/model/README.md").read_text()
    assert load_model_folder(out / "run" / "model").labels.genres
    again = posters_command("demo", "--out", out, "--posters", 60)
    assert again.returncode == 0, again.stderr
