"""Make the generated page docs/reference/python.md from the docstrings of the package ``toolkit``."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from functools import cached_property
from typing import Any

from docstring_parser import parse, parse_from_object
from plain_markdown import plain

import toolkit

#: Class → its members on the page of Python.
CLASSES = {
    "Predictor": ("predict", "preprocess", "genres", "thresholds", "model"),
    "ShardSet": ("to_pandas", "genres", "splits", "ids", "targets"),
    "ShardLoader": (
        "__init__",
        "set_epoch",
        "state_dict",
        "load_state_dict",
        "close",
        "labels",
        "num_samples",
        "epoch",
        "errors",
    ),
    "ShardBatch": ("keys",),
    "TrainTransform": (),
    "EvalTransform": (),
    "Run": ("model", "epoch", "monitor", "score", "cross_fitted", "figures", "epochs", "log", "config"),
    "Evaluation": ("figures", "to_dict", "render"),
    "UserError": (),
}

#: Dataclasses whose fields are listed.
WITH_FIELDS = ("ShardBatch", "TrainTransform", "EvalTransform")

PYTHON = """# Python

This page describes the functions and classes for your own programs and notebooks. [From Python](../guides/python.md)
shows how to use them.

_This page is generated. To change it, edit the docstrings and run `python docs/tools/reference.py`._

```python
import toolkit

model = toolkit.load_model("RUN/model")
found = model.predict(["poster.jpg", "another.jpg"])
print(found[["image", "genres"]])
```

`found` is a pandas DataFrame with one row per image. An image may be a path, bytes, an open file, a Pillow picture,
or a `uint8` array.

`toolkit.__version__` is the version of the toolkit. `import toolkit` takes some milliseconds. torch is imported at the
first use of a function that needs it.

## Keywords

`build_shards`, `train`, `evaluate`, `compare` and `tune` take the options of their commands as keywords. A keyword is
the name of the option without its dashes, and with `_` for `-`: `cache_limit="200GB"` for `--cache-limit 200GB`. The
lists of options are on the page [Command line](command-line.md). A value may be a Python object or the text of the
command line. Sections of the [configuration](configuration.md) are also keywords of `train`.
"""
PYTHON_ERRORS = """[Error codes](error-codes.md) lists the values of `code`.

```python
import toolkit

try:
    model = toolkit.load_model("RUN/model")
except toolkit.UserError as error:
    print(error.code, error)
```

All other modules are internal and may change in any version.
"""


def python() -> str:
    """Return the page of the public functions and classes."""
    functions = (
        "build_shards",
        "open_shards",
        "train",
        "evaluate",
        "compare",
        "tune",
        "load_model",
        "predict",
        "register",
    )
    parts = [PYTHON, *(_described(f"toolkit.{name}", getattr(toolkit, name)) for name in functions)]
    for name, members in CLASSES.items():
        kind = getattr(toolkit, name)
        parts.append(f"## toolkit.{name}\n\n{_text(kind)}\n{_fields(kind)}")
        parts += [_described(f"{name}.{member}", getattr(kind, member), "###") for member in members]
    parts.append(PYTHON_ERRORS)
    return "\n".join(parts)


def _fields(kind: type) -> str:
    """Return the documented fields of a dataclass and of its bases as a list, with their defaults."""
    if kind.__name__ not in WITH_FIELDS:
        return ""
    texts = {doc.arg_name: doc.description for base in kind.__mro__[:-1] for doc in parse_from_object(base).params}
    lines = []
    for field in dataclasses.fields(kind):
        made = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        default = "" if made is dataclasses.MISSING else f" (default: `{made!r}`)"
        if text := texts.get(field.name):
            lines.append(f"- `{field.name}`{default}: {plain(text)}")
    return "\n" + "\n".join(lines) + "\n"


def _described(title: str, member: Any, level: str = "##") -> str:
    if isinstance(member, (property, cached_property)):
        return f"{level} {title}\n\n{_text(member)}\n"
    title = title.removesuffix(".__init__")
    return f"{level} {title}\n\n```python\n{_signature(title, member)}\n```\n\n{_text(member)}\n"


def _signature(title: str, function: Callable[..., Any]) -> str:
    """Return the signature of a function with one parameter per line."""
    parameters = list(inspect.signature(function).parameters.values())
    lines, keyword_only = [], False
    for parameter in parameters:
        if parameter.name == "self":
            continue
        if parameter.kind is parameter.VAR_KEYWORD:
            lines.append(f"    **{parameter.name}: {parameter.annotation},")
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not keyword_only:
            keyword_only = True
            lines.append("    *,")
        default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
        lines.append(f"    {parameter.name}: {parameter.annotation}{default},")
    returns = inspect.signature(function).return_annotation
    return "\n".join([f"{title}(", *lines, f") -> {returns}"]) if lines else f"{title}() -> {returns}"


def _text(member: Any) -> str:
    """Return a docstring as Markdown, with its parameters as a list."""
    found = parse(inspect.getdoc(member) or "")
    parts = [plain(part) for part in (found.description or "").split("\n\n")]
    if found.params:
        parts.append("\n".join(f"- `{doc.arg_name}`: {plain(doc.description or '')}" for doc in found.params))
    if found.returns and found.returns.description:
        parts.append(f"Returns: {plain(found.returns.description)}")
    parts += [f"Raises {doc.type_name or ''}: {plain(doc.description or '')}" for doc in found.raises]
    return "\n\n".join(part for part in parts if part).replace(r"\|", "|")
