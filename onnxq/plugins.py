"""How ``module:function`` is found: the door by which a recipe reaches a user's own code."""

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from onnxq.errors import OnnxqError, PluginError, nearest

__all__ = ["call", "find", "is_reference", "source_files"]


def find(reference: str, search: Path | None = None) -> Callable[..., object]:
    """The callable that ``reference`` (``"package.module:name"``) names.

    ``search`` is a folder in which modules are looked for before the installed ones.
    Raises PluginError with the nearest name if there is no such module or name in it.
    """
    module_name, colon, name = reference.partition(":")
    if not colon or not module_name or not name:
        raise PluginError(f"`{reference}` is not of the form module:function", where=reference)
    folder = _search_first(search)
    try:
        module = importlib.import_module(module_name)
    except OnnxqError:
        raise
    except ModuleNotFoundError as fault:
        raise PluginError(
            f"no module named `{fault.name}` (looked in {folder} first)",
            where=reference,
            do="check the spelling and the recipe's `python_path`; or install its extra",
        ) from fault
    except Exception as fault:  # whatever a user's module does at import is reported as his
        raise PluginError(
            f"importing it failed: {type(fault).__name__}: {fault}", where=reference
        ) from fault
    found = getattr(module, name, None)
    if not callable(found):
        names = [n for n in vars(module) if not n.startswith("_")]
        raise PluginError(f"the module has no `{name}`; {nearest(name, names)}", where=reference)
    return found  # type: ignore[no-any-return]  # getattr gives Any


def call(
    reference: str,
    options: Mapping[str, object],
    search: Path | None = None,
    offered: Mapping[str, object] | None = None,
) -> object:
    """Call the plug-in with keyword ``options``, and those ``offered`` ones that it has a name for.

    Raises PluginError if the options do not fit.
    """
    function = find(reference, search)
    taken = {
        name: value
        for name, value in (offered or {}).items()
        if name in inspect.signature(function).parameters and name not in options
    }
    try:
        inspect.signature(function).bind(**options, **taken)
    except TypeError as fault:
        raise PluginError(
            f"takes {inspect.signature(function)}, and the recipe gives other options: {fault}",
            where=reference,
        ) from fault
    try:
        return function(**options, **taken)
    except OnnxqError:
        raise
    except Exception as fault:  # whatever a user's function raises is reported as his
        raise PluginError(
            f"raised {type(fault).__name__}: {fault}",
            where=reference,
            do="run it again with --verbose to see where",
        ) from fault


def is_reference(source: str) -> bool:
    """True for ``module:function``, false for a path."""
    module, colon, _ = source.partition(":")
    return bool(colon) and not Path(source).exists() and "/" not in module


def source_files(reference: str, search: Path | None = None) -> tuple[Path, ...]:
    """The Python files whose change may change the plug-in: those of its module's folder.

    The module itself is not imported, as that may load torch. Raises PluginError.
    """
    _search_first(search)
    try:
        found = importlib.util.find_spec(reference.partition(":")[0])
    except (ModuleNotFoundError, ValueError):
        found = None
    if found is None or found.origin is None:
        find(reference, search)  # says what is wrong
        return ()
    return tuple(sorted(Path(found.origin).parent.glob("*.py")))


def _search_first(search: Path | None) -> str:
    folder = str((search or Path.cwd()).resolve())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return folder
