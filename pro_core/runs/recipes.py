"""Recipes: the settings of a script's run, as one typed class per kind of recipe.

A recipe is a YAML file. Its class names every setting with its type, range, default and one line of meaning.
:meth:`Recipe.read` rejects invalid settings before anything is loaded, and suggests the nearest name for a misspelt
one. ``key=value`` on the command line overrides the file.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import yaml

from pro_core.system.extras import needs
from pro_core.system.settings import Seeds, Settings

with needs("train"):
    from pydantic import Field, PrivateAttr, ValidationError


class ConfigError(ValueError):
    """A recipe that cannot be run. The message says which setting, what it got and what it expected.

    Attributes:
        fields: the settings at fault, with dots between their parts (``targets.3.temperature``); may be empty.
    """

    def __init__(self, message: str, fields: Iterable[str] = ()):
        super().__init__(message)
        self.fields = tuple(fields)


class Recipe(Settings):
    """A kind of recipe. In Python, ``PanelRecipe(objectives=[...], ...)`` is equivalent to a YAML file."""

    _path: Path | None = PrivateAttr(None)
    _changes: tuple[str, ...] = PrivateAttr(())

    @classmethod
    def read(cls, path: str | Path, changes: Sequence[str] = ()) -> Self:
        """Read a YAML file and apply ``key=value`` changes. Dots lead into mappings (``lora.r=8``) and lists
        (``targets.0.temperature=1``); values are YAML.

        Raises:
            ConfigError: the file is missing or is not a mapping, or a setting is missing, unknown or invalid.
        """
        path = Path(path)
        settings = _mapping(path)
        for change in changes:
            _change(settings, change)
        return cls._checked(settings, path, changes, str(path))

    @classmethod
    def _checked(
        cls, settings: Mapping[str, Any], path: Path | None, changes: Sequence[str], where: str
    ) -> Self:
        try:
            recipe = cls.model_validate(settings)
        except ValidationError as error:
            raise _explained(cls, error, where) from None
        recipe._path, recipe._changes = path, tuple(changes)
        return recipe

    @property
    def config(self) -> str:
        """Its name in result rows: the file's name and the changes."""
        return " ".join([self._path.name if self._path else type(self).__name__, *self._changes])

    @property
    def changed(self) -> set[str]:
        """The settings that the command line changed, the outermost part of each name."""
        return {change.partition("=")[0].split(".")[0] for change in self._changes}

    @property
    def arguments(self) -> str:
        """The command-line arguments with which a script runs this recipe."""
        return shlex.join([str(self._path or f"RECIPE ({type(self).__name__})"), *self._changes])

    def decides(self, *names: str) -> dict[str, Any]:
        """The named settings as plain data, to be hashed or written."""
        return self.model_dump(include=set(names))


R = TypeVar("R", bound=Recipe)


class RecipeOfArms(Recipe):
    """A recipe of one run, or of several ``arms``: the same run with some settings changed."""

    varies: ClassVar[type[Settings]]
    """The class with the settings in which arms may differ. All others are shared, so that arms can be compared."""

    output: str
    """the folder of all runs; each arm and seed goes to <output>/<arm>/seed<n>"""
    seeds: Seeds = [0]
    arms: dict[str, dict[str, Any] | None] | None = Field(None, min_length=1)
    """{name in results: {setting: value}}; dots lead into a setting, as on the command line"""

    @classmethod
    def _checked(
        cls, settings: Mapping[str, Any], path: Path | None, changes: Sequence[str], where: str
    ) -> Self:
        recipe = super()._checked(settings, path, changes, where)
        recipe.methods()
        return recipe

    @classmethod
    def varied(cls) -> list[str]:
        """The settings in which arms may differ."""
        return [name for name in cls.varies.model_fields if name not in RecipeOfArms.model_fields]

    def methods(self) -> Mapping[str, Recipe]:
        """One recipe per arm, by name.

        Raises:
            ConfigError: an invalid arm, or two arms that would share a folder.
        """
        raise NotImplementedError

    def arm_recipes(
        self, kind: type[R], shared: Mapping[str, Any], own: Callable[[str], Mapping[str, Any]]
    ) -> dict[str, R]:
        """One recipe of ``kind`` per arm, by name: the shared settings, then the arm's changes, then ``own(name)``.

        Raises:
            ConfigError: as :meth:`methods`.
        """
        where, varied = str(self._path or type(self).__name__), self.varied()
        recipes: dict[str, R] = {}
        folders: dict[str, str] = {}
        for name, changes in (self.arms or {}).items():
            settings, place = deepcopy(dict(shared)), f"arms.{name}"
            outer = {key: key.split(".")[0] for key in changes or {}}
            if unknown := {key: setting for key, setting in outer.items() if setting not in varied}:
                problems = [_unknown(setting, varied) for setting in unknown.values()]
                fields = [f"{place}.{key}" for key in unknown]
                raise ConfigError(f"{where}: {place}: {'; '.join(problems)}", fields)
            if (other := folders.setdefault(folder_name(name), name)) != name:
                raise ConfigError(
                    f"{where}: the arms {other!r} and {name!r} would share a folder: name them otherwise",
                    [place],
                )
            try:
                for key, value in (changes or {}).items():
                    _write(settings, key, value)
                arm = kind.model_validate(settings | dict(own(name)))
            except ValidationError as error:
                raise _explained(kind, error, where, place) from None
            except ConfigError as error:
                fields = [f"{place}.{field}" for field in error.fields]
                raise ConfigError(f"{where}: {place}: {error}", fields) from None
            arm._path, arm._changes = self._path, self._changes
            recipes[name] = arm
        return recipes


def folder_name(method: str) -> str:
    """``pro-wic-online-dirichlet``: the name of a method or an arm, fit for a folder."""
    return re.sub(r"[^a-z0-9]+", "-", method.lower()).strip("-")


def described(kind: type[Settings]) -> Iterator[str]:
    """One line per setting of a recipe: name, type and range, default, meaning."""
    schema = kind.model_json_schema()
    parts = schema.get("$defs", {})
    yield from _lines(schema, parts)
    if issubclass(kind, RecipeOfArms):
        yield f"Arms may differ in: {', '.join(kind.varied())}."


# ---------------------------------------------------------------- reading


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """A YAML loader that reads 1e-4 as a number, as YAML 1.2 does; PyYAML reads it as text."""


_Loader.yaml_implicit_resolvers = {
    first: list(resolvers) for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def _mapping(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f"{path}: no such recipe")
    try:
        settings = yaml.load(path.read_bytes(), _Loader)  # noqa: S506
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: not YAML ({error})") from None
    if not isinstance(settings, dict):
        raise ConfigError(f"{path}: expected a mapping of settings")
    return settings


def _change(settings: dict[str, Any], change: str) -> None:
    """Write ``a.b=value`` into a mapping."""
    key, equals, text = change.partition("=")
    if not (equals and all(key.split("."))):
        raise ConfigError(f"got {change!r}, expected key=value, such as learning_rate=1e-4")
    try:
        value = yaml.load(text, _Loader)  # noqa: S506
    except yaml.YAMLError as error:
        raise ConfigError(f"{change!r}: the value is not YAML ({error})", [key]) from None
    _write(settings, key, value)


def _write(settings: dict[str, Any], key: str, value: Any) -> None:
    """Set the setting ``a.b`` of a mapping."""
    *outer, last = key.split(".")
    inner: Any = settings
    for part in outer:
        step = _step(inner, part, key)
        if not isinstance(inner, list) and not isinstance(inner.get(step), dict | list):
            inner[step] = {}
        inner = inner[step]
    inner[_step(inner, last, key)] = value


def _step(inner: Any, part: str, key: str) -> Any:
    """One part of a dotted setting's name as a key; as an index, from 0, if ``inner`` is a list."""
    if isinstance(inner, dict):
        return part
    if isinstance(inner, list) and part.isdecimal() and int(part) < len(inner):
        return int(part)
    length = f"a list of {len(inner)}" if isinstance(inner, list) else repr(inner)
    raise ConfigError(f"{key}: got {part!r} to look up in {length}", [key])


# ---------------------------------------------------------------- what went wrong, and what there is


def _explained(
    kind: type[Settings], error: ValidationError, where: str, place: str = ""
) -> ConfigError:
    problems: dict[str, str] = {}
    fields = []
    for details in error.errors(include_url=False):
        names, known = _place(kind, details["loc"])
        field = ".".join([*([place] if place else []), *names])
        about = f"{field}: " if field else ""
        if details["type"] == "extra_forbidden":
            outer = f"{field.rpartition('.')[0]}: " if "." in field else ""
            problems[field] = outer + _unknown(names[-1], known)
        elif details["type"] == "missing":
            problems[field] = f"the setting {field!r} is missing"
        elif details["type"] == "value_error":
            reason = details["ctx"]["error"]
            problems[field] = about + str(reason)
            if isinstance(reason, ConfigError) and reason.fields:  # a rule across settings
                fields += [".".join(filter(None, (field, name))) for name in reason.fields]
                continue
        else:
            expected = details["msg"].removeprefix("Input should be ").removeprefix("a valid ")
            expected = {"string": "text", "dictionary": "{name: value}"}.get(expected, expected)
            if field in problems:  # another form that the setting may have
                problems[field] += f" or {expected}"
                continue
            problems[field] = f"{about}got {details['input']!r}, expected {expected}"
        fields.append(field)
    # Of a setting with two forms, that form is meant in which the fault lies deeper.
    deeper = [f for f in fields if any(other.startswith(f"{f}.") for other in fields)]
    texts = [text for f, text in problems.items() if f not in deeper]
    return ConfigError(f"{where}: {'; '.join(texts)}", [f for f in fields if f not in deeper])


def _unknown(name: str, known: Iterable[str]) -> str:
    names = sorted(known)
    near = get_close_matches(name, names, 1)
    expected = f"did you mean {near[0]!r}?" if near else f"expected one of {names}"
    return f"unknown setting {name!r}, {expected}"


def _place(kind: type[Settings], loc: tuple[Any, ...]) -> tuple[list[str], list[str]]:
    """Where an error was found, without the names that pydantic gives to the forms of one setting; and the settings
    that may stand beside it."""
    schema = kind.model_json_schema()
    parts = schema.get("$defs", {})
    names: list[str] = []
    forms, known, chosen = [schema], [], False
    for step in loc:
        if len(forms) > 1 and not chosen:
            chosen = True  # this step names a form
            continue
        known = [name for form in forms for name in form.get("properties", {})]
        inner: dict[str, Any] = {}
        for form in forms:
            inner = form.get("properties", {}).get(step) or inner
            inner = form.get("items" if isinstance(step, int) else "additionalProperties") or inner
        names.append(str(step))
        forms, chosen = _forms(inner, parts), False
    return names, known


def _forms(schema: Any, parts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The forms that a setting may have, null aside."""
    resolved = _resolved(schema, parts)
    forms = [_resolved(form, parts) for form in resolved.get("anyOf", [resolved])]
    return [form for form in forms if form.get("type") != "null"]


def _resolved(schema: Any, parts: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(schema, dict):
        return {}
    name = schema.get("$ref", "").rpartition("/")[2]
    return parts[name] if name else schema


def _lines(
    schema: Mapping[str, Any], parts: Mapping[str, Any], indent: str = "  "
) -> Iterator[str]:
    required = set(schema.get("required", ()))
    for name, field in schema["properties"].items():
        default = "required" if name in required else f"default {_shown(field.get('default'))}"
        meaning = " ".join(str(_resolved(field, parts).get("description", "")).split())
        meaning = " ".join(str(field.get("description", meaning)).split())
        yield f"{indent}{name}: {_type(field, parts)}; {default}" + (
            f". {meaning}" if meaning else ""
        )
        for part in _parts_of(field, parts):
            yield from _lines(part, parts, indent + "    ")


def _parts_of(field: Any, parts: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The nested settings of a field: the field itself, its list items or its mapping values."""
    inner = [field, field.get("items"), field.get("additionalProperties"), *field.get("anyOf", ())]
    for option in inner:
        schema = _resolved(option, parts)
        if "properties" in schema:
            yield schema
        elif option is not field and isinstance(option, dict) and "$ref" not in option:
            yield from _parts_of(option, parts)


_WORDS = {"integer": "whole number", "string": "text", "boolean": "true or false", "null": "null"}
_LIMITS = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}


def _type(field: Mapping[str, Any], parts: Mapping[str, Any]) -> str:
    if "anyOf" in field:
        return " or ".join(_type(option, parts) for option in field["anyOf"])
    if "$ref" in field:
        return (
            _type(_resolved(field, parts), parts) if "enum" in _resolved(field, parts) else "{...}"
        )
    if "enum" in field or "const" in field:
        return " | ".join(_shown(value) for value in field.get("enum", [field.get("const")]))
    kind = field.get("type", "anything")
    if kind == "array":
        return f"list of {_type(field.get('items', {}), parts)}"
    if kind == "object":
        inner = field.get("additionalProperties")
        return f"{{name: {_type(inner, parts)}}}" if isinstance(inner, dict) else "{name: value}"
    limits = [f"{sign} {field[key]:g}" for key, sign in _LIMITS.items() if key in field]
    return " ".join([_WORDS.get(kind, kind), " and ".join(limits)]).strip()


def _shown(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000)
    return text.removesuffix("\n").removesuffix("\n...")
