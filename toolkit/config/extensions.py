"""Code of users: ``MODULE:CLASS`` as the name of a loss, an augmentation, a metric, a head, an optimiser, and so on.

If the user's command line, configuration or program names such a class, `use` imports it. Model folders, checkpoints
and shard sets may come from strangers. `named_in_file` returns a class that such a file names only if the user has used
or registered the class in this process, or has trusted its module (--trust-code).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib
import inspect
import math
import os
import re
import site
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, get_args, get_type_hints

import msgspec

from shards.errors import UserError, did_you_mean, one_line
from shards.extras import load_object
from shards.values import check_rules, rules_of

T = TypeVar("T")

#: Pattern of MODULE:CLASS, e.g. ``my_module:MyLoss``.
PLACE = r"[A-Za-z_][A-Za-z_0-9]*(\.[A-Za-z_][A-Za-z_0-9]*)*:[A-Za-z_][A-Za-z_0-9]*"


class Kind(NamedTuple):
    """What a class must offer to extend one registry."""

    base: str = ""
    """Base class as MODULE:CLASS. If it is empty, any class with the ``methods`` fits."""
    first: int = 0
    """Number of positional arguments that the toolkit passes to the constructor."""
    given: tuple[str, ...] = ()
    """Keyword arguments that the toolkit passes if the constructor has them. Other keyword arguments are options."""
    methods: tuple[str, ...] = ("__call__",)
    """Methods that a class must have if ``base`` is empty."""


#: Kind of extension, in words → what its classes must offer. docs/guides/extend.md describes all kinds.
KINDS = {
    "loss": Kind("torch.nn:Module", 0, ("counts", "num_samples", "smoothing", "options")),
    "augmentation": Kind(),
    "metric": Kind(),
    "head": Kind("torch.nn:Module", 2),
    "optimiser": Kind("torch.optim:Optimizer", 1, ("lr",)),
    "prediction format": Kind("toolkit.prediction.formats:Format"),
    "adapter": Kind(methods=("__call__", "merge")),
    "tracker": Kind("accelerate.tracking:GeneralTracker", 0, ("out",)),
}

#: MODULE:CLASS → class that the user named or registered in this process.
_USED: dict[str, type] = {}
#: Modules whose classes files of others may name (--trust-code). The submodules of a package are included.
_TRUSTED: set[str] = set()


def is_place(name: object) -> bool:
    """Return whether a name has the form MODULE:CLASS."""
    return isinstance(name, str) and re.fullmatch(PLACE, name) is not None


def register(found: type[T]) -> type[T]:
    """Make a class available under its name MODULE:CLASS, also for model folders that name it. Return the class.

    Use it as a decorator, or call it, in a program or a notebook. The name of a class in a notebook is
    ``__main__:CLASS``.
    """
    _USED[f"{found.__module__}:{found.__qualname__}"] = found
    return found


def trust(modules: Iterable[str]) -> None:
    """Allow model folders to name classes of these modules (--trust-code)."""
    _TRUSTED.update(modules)


def parse_modules(text: str) -> tuple[str, ...]:
    """Convert "my_module,other.module" to a tuple. Raises UserError for other texts."""
    names = tuple(part for part in text.replace(" ", ",").split(",") if part)
    for name in names:
        if not is_place(f"{name}:X"):
            raise UserError("option-value", f"--trust-code takes names of modules such as my_module, not {name!r}")
    return names


def use(kind: str, place: str, where: str) -> type:
    """Import and return a class that the user has named. ``where``: the key or option, for messages.

    The module is searched in the current folder, then on Python's path. Raises UserError if there is no such module or
    class, or if the class does not fit its kind.
    """
    if place not in _USED:
        _USED[place] = _imported(place, where)
    found = _USED[place]
    _check_kind(kind, place, found, where)
    return found


def named_in_file(kind: str, place: str, where: object) -> type:
    """Return a class that a file names, such as the head of a model folder. ``where``: the folder, for messages.

    Raises UserError, and imports nothing, if the user has not used, registered or trusted the class.
    """
    module = place.partition(":")[0]
    parents = {module[:end] for end in (*(at.start() for at in re.finditer(r"\.", module)), len(module))}
    if place not in _USED and not parents & _TRUSTED:
        raise UserError("weights-refused", f"{where} uses {place}; its code is only loaded with --trust-code {module}")
    return use(kind, place, str(where))


def make(kind: str, place: str, options: Mapping[str, Any], where: str, *first: Any, **given: Any) -> Any:
    """Return an instance of a used class. ``first``: positional arguments. ``given``: arguments, if the class has them.

    Raises UserError if an option does not fit, or if the constructor fails.
    """
    found = named_in_file(kind, place, where)
    checked = check_options(kind, place, found, options, where)
    names = _parameters(found)
    arguments = {name: value for name, value in given.items() if name in names}
    if dataclasses.is_dataclass(checked):
        arguments["options"] = checked
    else:
        arguments |= checked
    return explained(f"{where} {place}", lambda: found(*first, **arguments))


def code_digest(place: str) -> str:
    """Return the SHA-256 of the file of a used class. Empty if it has no file, as in a notebook."""
    file = getattr(sys.modules.get(_USED[place].__module__), "__file__", None)
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file and Path(file).is_file() else ""


def explained(what: str, call: Callable[[], T]) -> T:
    """Return the result of ``call``. Raises UserError with the line of the user's code if it fails."""
    try:
        return call()
    except UserError:
        raise
    except Exception as error:
        raise UserError("option-value", f"{what} fails with {_said(error)}") from error


def checked_tensor(found: Any, shape: tuple[int, ...], what: str, given: str, needed: str) -> Any:
    """Return the result of a call of the user's object. Raises UserError if it is not a tensor of ``shape``.

    ``what``, ``given`` and ``needed`` are the words of the message for the object, its argument and the right result.
    """
    is_tensor = isinstance(found, load_object("torch:Tensor"))
    if is_tensor and found.shape == shape:
        return found
    returned = tuple(found.shape) if is_tensor else type(found).__name__
    raise UserError(
        "option-value", f"{what} returned {returned} for {given}: it must return {needed}, of shape {shape}"
    )


def check_options(kind: str, place: str, found: type, options: Mapping[str, Any] | None, where: str) -> Any:
    """Return checked options of a class: an instance of its dataclass ``Options``, or a dict of keyword arguments.

    ``where``: the key of the options in messages, e.g. ``loss.options``. Raises UserError for an option that the class
    does not have, for a value of another type, and for a missing option.
    """
    given = {str(name): value for name, value in (options or {}).items()}
    own = _own_dataclass(kind, found)
    if own is not None:
        return checked(own, given, where, place)
    signature = _options_class(kind, found)
    if signature is None:  # **kwargs takes any option
        return given
    made = checked(signature, given, where, place)
    return {name: getattr(made, name) for name in given}


def checked(kind: type, given: Any, where: str, name: str) -> Any:
    """Return an instance of the dataclass ``kind`` from a mapping of options. Raises UserError for unfit options.

    ``where``: the key of the options in messages. ``name``: the name of the loss, tracker or class that has them.
    """
    known = list(rules_of(kind))
    for option in map(str, given or ()):  # a key in YAML may be a number
        if option not in known:
            hint = did_you_mean(option, known) or f"; {name} has {', '.join(known) or 'no options'}"
            raise UserError("option-unknown", f"{where}.{option} is not an option of {name}{hint}")
    for field in dataclasses.fields(kind):
        needed = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if needed and field.name not in (given or {}):
            raise UserError("option-missing", f"{where}.{field.name} is missing: {name} needs this option")
    try:
        options: Any = msgspec.convert(given, kind)
    except msgspec.ValidationError as error:
        raise UserError("option-value", f"{where}: {one_line(error)}") from None
    check_values(where, options)
    return options


def check_values(where: str, options: Any) -> None:
    """Raise UserError for a field of the dataclass ``options`` that breaks the rule of its type."""
    for name, hint in get_type_hints(type(options)).items():
        if getattr(options, name) is None and hint is not Any and type(None) not in get_args(hint):  # no value in YAML
            raise UserError("option-value", f"{where}.{name} has no value: add a value, or remove the key")
    for name, value in vars(options).items():
        numbers = value if isinstance(value, (tuple, list)) else [value]
        if not all(math.isfinite(number) for number in numbers if isinstance(number, float)):
            raise UserError("option-value", f"{where}.{name} must be finite, not {value}")
    check_rules(options, lambda name: f"{where}.{name}")


def _imported(place: str, where: str) -> type:
    module_name, _, name = place.partition(":")
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)  # as `python -m` does
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # any error of the user's module
        if isinstance(error, ModuleNotFoundError) and error.name and f"{module_name}.".startswith(f"{error.name}."):
            near = did_you_mean(error.name, (path.stem for path in Path(here).glob("*.py")))
            raise UserError(
                "option-value", f"{where} {place}: there is no module {error.name} in {here} or on Python's path{near}"
            ) from None
        raise UserError("option-value", f"{where} {place}: {module_name} cannot be imported: {_said(error)}") from error
    if not hasattr(module, name):
        classes = [known for known, value in vars(module).items() if isinstance(value, type)]
        near = did_you_mean(name, classes)
        raise UserError("option-value", f"{where} {place}: {_place_of(module)} has no {name}{near}")
    found = getattr(module, name)
    if not isinstance(found, type):
        raise UserError("option-value", f"{where} {place} is a {type(found).__name__}, not a class")
    return found


def _place_of(module: Any) -> str:
    return getattr(module, "__file__", None) or module.__name__


def _check_kind(kind: str, place: str, found: type, where: str) -> None:
    """Raise UserError if a class does not have the base class or the method of its kind."""
    base = KINDS[kind].base
    if base and not issubclass(found, load_object(base)):
        bases = ", ".join(f"{one.__module__}.{one.__qualname__}" for one in found.__bases__)
        raise UserError(
            "option-value", f"{where} {place}: the class must be a subclass of {base.replace(':', '.')}, not of {bases}"
        )
    for method in () if base else KINDS[kind].methods:
        if not any(method in vars(one) for one in found.__mro__):
            raise UserError("option-value", f"{where} {place}: the class must have the method {method}")


def _parameters(found: type) -> dict[str, inspect.Parameter]:
    """Return the parameters of a constructor. Empty if Python cannot find its signature."""
    try:
        return dict(inspect.signature(found).parameters)
    except ValueError:
        return {}


def _own_dataclass(kind: str, found: type) -> type | None:
    own = getattr(found, "Options", None)
    return own if "options" in KINDS[kind].given and dataclasses.is_dataclass(own) and isinstance(own, type) else None


@functools.cache
def _options_class(kind: str, found: type) -> type | None:
    """Return a dataclass with the options of a constructor. None if the constructor takes any keyword argument."""
    maker: Any = found
    parameters = list(_parameters(found).values())[KINDS[kind].first :]
    if any(one.kind is one.VAR_KEYWORD for one in parameters):
        return None
    try:
        hints = get_type_hints(maker.__init__, include_extras=True)
    except Exception:  # names that only a type checker knows
        hints = {}
    fields: list[Any] = []
    for one in parameters:
        if one.kind is one.VAR_POSITIONAL or one.name in KINDS[kind].given:
            continue
        default = dataclasses.field()
        if one.default is not one.empty:
            default = dataclasses.field(default_factory=functools.partial(lambda value: value, one.default))
        fields.append((one.name, _known_type(hints.get(one.name, Any), one.default), default))
    return dataclasses.make_dataclass(found.__name__, fields, kw_only=True)


def _known_type(hint: Any, default: object) -> Any:
    """Return a type that msgspec can check. None is allowed if it is the default."""
    hint = hint | None if default is None and hint is not Any else hint
    try:
        msgspec.convert(None, hint | None)
    except TypeError:  # msgspec does not know the type
        return Any
    return hint


def _said(error: BaseException) -> str:
    """Return an exception in one line, with file and line of the last frame in the user's code."""
    text = f"{type(error).__name__}: {one_line(error)[:300]}"
    if isinstance(error, SyntaxError):  # its text has file and line
        return text
    others = (str(Path(__file__).parents[1]), os.path.dirname(os.__file__), "<frozen", *site.getsitepackages())
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(others)]
    return f"{text} ({frames[-1].filename}, line {frames[-1].lineno})" if frames else text
