"""The folder of a report: whole, replaced as a whole, and nothing that lies in DIR is ever lost."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from failing import fails
from report_tools import GENRES, NASTY, SAMPLES, all_plots, inputs, simulate

from toolkit.report.build import Report, build_report
from toolkit.report.output import check_report_folder, write_report


@pytest.fixture(scope="module")
def report() -> Report:
    return build_report(inputs(), label_errors=False, rounds=20)


def test_the_folder_and_its_files(report: Report, tmp_path: Path):
    folder = tmp_path / "new" / "report"
    assert write_report(folder, report) == folder / "index.html"
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    plots = {f"plots/{plot.name}.{kind}" for plot in all_plots(report) for kind in ("png", "svg")}
    assert names == {"index.html", "metrics.json", "per-genre.csv", *plots}
    assert f'<meta name="page-of" content="Report {"ab" * 32}">' in (folder / "index.html").read_text()
    numbers = json.loads((folder / "metrics.json").read_text())
    assert numbers["headline"] == report.numbers["headline"] and numbers["num_samples"] == SAMPLES
    table = pd.read_csv(folder / "per-genre.csv")
    assert table["genre"].tolist() == GENRES
    assert table["support"].tolist() == simulate()[0].sum(axis=0).tolist()


def test_an_older_report_is_replaced_and_a_torn_one_too(report: Report, tmp_path: Path):
    write_report(tmp_path, report)
    old = [tmp_path / "plots" / f"precision-recall-99-old.{kind}" for kind in ("png", "svg")]
    for path in old:
        path.write_bytes(b"old")
    (tmp_path / "label-errors.csv").write_text("old")
    (tmp_path / "index.html").unlink()  # as a kill leaves it
    (tmp_path / "index.html.1.partial").write_text("half")
    write_report(tmp_path, report)
    assert (tmp_path / "index.html").exists()
    assert not any(path.exists() for path in old)
    assert not (tmp_path / "label-errors.csv").exists()


def test_label_errors_as_a_table(report: Report, tmp_path: Path):
    row = {"id": "=1+1", "score": 0.5, "genre": NASTY, "given": True, "probability": 0.1, "genres": ["War", NASTY]}
    numbers = report.numbers | {"label_errors": {"samples": 1, "rows": [row]}}
    write_report(tmp_path, replace(report, numbers=numbers))
    (found,) = pd.read_csv(tmp_path / "label-errors.csv").to_dict("records")
    # Opened in a spreadsheet it is no formula; numbers are numbers.
    assert found == row | {"genres": f"War|{NASTY}", "id": "'=1+1"}


@pytest.mark.parametrize("strange", ["notes.txt", "plots/notes.txt", "sub/index.html", "metrics.json", "index.html"])
def test_a_folder_with_something_else_is_refused_untouched(report: Report, tmp_path: Path, strange: str):
    path = tmp_path / "dir" / strange
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    with fails("path-exists", "--report", tmp_path / "dir", strange.split("/")[0]):
        write_report(tmp_path / "dir", report)
    assert [p for p in (tmp_path / "dir").rglob("*") if p.is_file()] == [path] and path.read_text() == "{}"


def test_empty_and_new_folders_are_fine_and_files_are_not(tmp_path: Path):
    check_report_folder(tmp_path)
    check_report_folder(tmp_path / "new")
    (tmp_path / "file").write_text("")
    with fails("path-exists", "--report", tmp_path / "file"):
        check_report_folder(tmp_path / "file")
