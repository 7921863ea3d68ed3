"""The docs list the codes of errors, and an error comes whole from another process."""

import pickle
import re
from typing import get_args

import pytest
from shard_tools import ROOT

from shards.errors import Code, UserError
from shards.storage.retry import Unreadable


def test_the_docs_list_every_code():
    listed = re.findall(
        r"^\| `([a-z-]+)` \|", (ROOT / "docs" / "reference" / "error-codes.md").read_text(), re.MULTILINE
    )
    assert listed == list(get_args(Code))


@pytest.mark.parametrize("error", [UserError("path-missing", "no file at x"), Unreadable("y stopped", passing=True)])
def test_an_error_comes_whole_from_another_process(error: UserError):
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert (str(again), again.code, again.status) == (str(error), error.code, error.status)
