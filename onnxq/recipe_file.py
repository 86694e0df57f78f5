"""A recipe's file: read, overruled by settings, and every fault told with its line."""

from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from onnxq.errors import RecipeError, nearest
from onnxq.plugins import is_reference
from onnxq.recipe import DataSection, DataSource, Recipe, Written

__all__ = ["load_recipe"]


def load_recipe(path: Path, settings: tuple[str, ...] = (), *, place: Path | None = None) -> Recipe:
    """Read a YAML recipe, apply ``key.sub=value`` settings, resolve its paths.

    A copy that lies elsewhere is read as if it lay at ``place``.

    Raises RecipeError that names the line of the fault, with the nearest known key for a typo.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError("no such file", where=str(path), do="check the recipe's path") from None
    except (OSError, UnicodeDecodeError) as fault:
        raise RecipeError(f"cannot be read: {fault}", where=str(path)) from fault
    try:
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except yaml.YAMLError as fault:
        raise _syntax_error(path, text, fault) from fault
    if not isinstance(values, dict):
        raise RecipeError("holds no mapping of keys to values", where=str(path))
    _refuse_repeated_keys(tree, path)
    for setting in settings:
        _apply(values, setting)
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as fault:
        raise RecipeError(
            "\n".join(_explain(error, tree, path) for error in fault.errors()),
            do="`onnxq schema` prints every key with its type",
        ) from fault
    place = (place or path).resolve()
    written = Written(place, text, settings)
    return _with_absolute_paths(recipe, place.parent).read_from(written)


def _syntax_error(path: Path, text: str, fault: yaml.YAMLError) -> RecipeError:
    mark = getattr(fault, "problem_mark", None)
    line = mark.line + 1 if mark else 1
    lines = text.splitlines()
    content = lines[line - 1] if line <= len(lines) else ""
    where = f"{path}:{line}"
    if "\t" in content[: len(content) - len(content.lstrip())]:
        return RecipeError("a tab indents this line", where=where, do="YAML allows spaces only")
    return RecipeError(f"is no YAML: {getattr(fault, 'problem', None) or fault}", where=where)


def _refuse_repeated_keys(node: yaml.Node | None, path: Path) -> None:
    """YAML lets a later key silently replace an earlier one of the same name."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_repeated_keys(item, path)
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.value in seen:
                what = f"the key `{key.value}` stands in line {seen[key.value]} already"
                raise RecipeError(what, where=f"{path}:{line}", do="keep one of them")
            seen[key.value] = line
            _refuse_repeated_keys(value, path)


def _apply(values: dict[str, Any], setting: str) -> None:
    """Put ``a.b=value`` into a nested mapping; the value is read as YAML."""
    key, equals, value = setting.partition("=")
    if not equals or not key:
        raise RecipeError(f"`{setting}` is not of the form key=value", where="--set")
    *parents, last = key.split(".")
    for parent in parents:
        inner = values.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise RecipeError(f"`{parent}` holds no keys", where=f"--set {setting}")
        values = inner
    try:
        values[last] = yaml.safe_load(value)
    except yaml.YAMLError as fault:
        raise RecipeError(f"`{value}` is no YAML value", where=f"--set {setting}") from fault


def _explain(error: Any, tree: yaml.Node | None, path: Path) -> str:
    location = error["loc"]
    where = f"{path}:{_line_of(tree, location)}"
    key = ".".join(map(str, location)) or "recipe"
    if error["type"] == "extra_forbidden":
        known = _known_keys(location[:-1])
        place = ".".join(map(str, location[:-1])) or "the recipe"
        return (
            f"{where}: unknown key `{location[-1]}` in {place}; {nearest(str(location[-1]), known)}"
        )
    if error["type"] == "missing":
        return f"{where}: the key `{key}` is missing"
    message = error["msg"].removeprefix("Value error, ")
    return f"{where}: `{key}`: {message} (found {error['input']!r:.60})"


def _line_of(node: yaml.Node | None, location: tuple[int | str, ...]) -> int:
    """Line (from 1) of the deepest part of ``location`` that stands in the file."""
    line = node.start_mark.line + 1 if node else 1
    for part in location:
        if isinstance(node, yaml.MappingNode):
            pairs = {key.value: (key, value) for key, value in node.value}
            if part not in pairs:
                break
            key, node = pairs[part]
            line = key.start_mark.line + 1
        elif (
            isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value)
        ):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            break
    return line


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    """Keys of the section that ``location`` leads to."""
    model: type[BaseModel] = Recipe
    for part in location:
        if isinstance(part, int):
            continue
        annotation: Any = model.model_fields[part].annotation
        candidates = (annotation, *get_args(annotation))
        model = next(
            candidate
            for candidate in candidates
            if isinstance(candidate, type) and issubclass(candidate, BaseModel)
        )
    return list(model.model_fields)


def _with_absolute_paths(recipe: Recipe, folder: Path) -> Recipe:
    def absolute(path: Path | None) -> Path | None:
        return None if path is None else (folder / path).resolve()

    export = recipe.export.model_copy(
        update={
            "checkpoint": absolute(recipe.export.checkpoint),
            "model": absolute(recipe.export.model),
        }
    )

    def with_absolute_paths(source: DataSource) -> DataSource:
        file = source.source if is_reference(source.source) else str(folder / source.source)
        paths = {key: (folder / path).resolve() for key, path in source.paths.items()}
        return source.model_copy(update={"source": file, "paths": paths})

    training = recipe.data.training
    data = DataSection(
        calibration=with_absolute_paths(recipe.data.calibration),
        evaluation=with_absolute_paths(recipe.data.evaluation),
        training=with_absolute_paths(training) if training is not None else None,
    )
    return recipe.model_copy(
        update={
            "export": export,
            "data": data,
            "python_path": absolute(recipe.python_path),
            "build": absolute(recipe.build),
        }
    )
