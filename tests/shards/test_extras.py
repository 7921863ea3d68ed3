"""Optional packages: imported where they are there, and one line where they are not."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from failing import fails

from shards.errors import UserError
from shards.extras import absent, require_extra


def test_what_is_installed_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("one_extra", "other_extra"):
        (tmp_path / f"{name}.py").touch()
    require_extra("clean", "a test", "one_extra", "other_extra", load=False)
    assert not {"one_extra", "other_extra"} & sys.modules.keys()
    assert require_extra("clean", "a test", "one_extra", "other_extra") is sys.modules.pop("one_extra")
    assert sys.modules.pop("other_extra") and absent("one_extra", "no_extra") == ["no_extra"]


def test_what_is_not_installed_is_named_with_the_whole_command() -> None:
    with fails("extra-missing") as caught:
        require_extra("clean", "a test", "json", "no_extra", "none_either")
    assert str(caught.value) == "a test needs no_extra and none_either: pip install 'poster-toolkit[clean]'"


def test_what_is_installed_and_broken_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "broken_extra.py").write_text("raise ImportError('libGL.so.1: cannot open\\nit')")
    with pytest.raises(UserError, match=r"needs broken_extra: .* \(libGL\.so\.1: cannot open it\)$"):
        require_extra("clean", "a test", "broken_extra")
