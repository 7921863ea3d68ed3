"""Targets of every form, and other members, are kept for a later run as they were read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from failing import fails
from foreign_tars import adopt, pack
from shard_tools import draw, encoded, tree, write_file, write_tar

from shards.build.index import kept as index_kept

TARGETS: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "names": ([["War"], "Drama|War"], {}),
    "classes": ([3, 0], {}),
    "multi-hot": ([[0, 1], [1, 1]], {}),
    "indices": ([[4, 7], [7]], {}),
    "bad": ([["War"], {"a": 1}], {}),
    "weights": ([["War"], ["Drama"]], {"multi_hot": [1], "weight": 0.5}),
}


@pytest.mark.parametrize("form", TARGETS)
def test_targets(form: str, tmp_path: Path) -> None:
    (first, second), more = TARGETS[form]
    compare(tmp_path, lambda tar: pack(tar, "a b", a={"genres": first, **more}, b={"genres": second, **more}))


def test_cls_and_other_members(tmp_path: Path) -> None:
    members = {"a.jpg": encoded(draw(1)), "a.cls": b"5", "a.txt": b"words", "b.jpg": encoded(draw(2)), "b.cls": b"x"}
    compare(tmp_path, lambda tar: write_tar(tar, members))


def compare(folder: Path, write: Any) -> None:
    """A run that was stopped, and a run in one go, write the same files."""
    tars = folder / "tars"
    write(tars / "x.tar")
    write_file(tars / "y.tar", b"damaged")
    with fails("tar-unsupported", "y.tar"):
        adopt(tars, out=folder / "out")
    assert len(list((folder / "out" / index_kept.WORK).iterdir())) == 1
    (tars / "y.tar").unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index_kept, "read_contents", None)  # x.tar is not read again
        adopt(tars, out=folder / "out")
    adopt(tars, out=folder / "whole")
    assert tree(folder / "out") == tree(folder / "whole")
