"""Recipes: what a run of a script is told, as one typed class per kind of recipe.

A recipe is a YAML file. Its class names every setting with its type, range, default and one line of meaning;
:meth:`Recipe.read` refuses what does not fit before anything is loaded, and names the nearest setting for a misspelt
one. ``key=value`` on a command line stands in place of what the file says.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar, Self

import yaml

from pro_core.system.extras import needs
from pro_core.system.settings import Count as Count  # `as`: writers of recipes import from here
from pro_core.system.settings import Names as Names
from pro_core.system.settings import Positive as Positive
from pro_core.system.settings import Seeds as Seeds
from pro_core.system.settings import Settings as Settings
from pro_core.system.settings import Share as Share

with needs("train"):
    from pydantic import Field, PrivateAttr, ValidationError


class ConfigError(ValueError):
    """A recipe that cannot be run: says which setting, what it got, what it expected.

    Attributes:
        fields: the settings at fault, each with dots between its parts (``targets.3.temperature``); may be empty.
    """

    def __init__(self, message: str, fields: Iterable[str] = ()):
        super().__init__(message)
        self.fields = tuple(fields)


class Recipe(Settings):
    """A kind of recipe. From Python, ``PanelRecipe(objectives=[...], ...)`` says the same as a file."""

    _path: Path | None = PrivateAttr(None)
    _changes: tuple[str, ...] = PrivateAttr(())

    @classmethod
    def read(cls, path: str | Path, changes: Sequence[str] = ()) -> Self:
        """A YAML file, with ``key=value`` changes; dots lead into mappings (``lora.r=8``) and lists
        (``targets.0.temperature=1``), values are YAML.

        Raises:
            ConfigError: no such file, no mapping, a missing or an unknown setting, or a value that does not fit.
        """
        path = Path(path)
        said = _mapping(path)
        for change in changes:
            _change(said, change)
        return cls._checked(said, path, changes, str(path))

    @classmethod
    def _checked(
        cls, said: Mapping[str, Any], path: Path | None, changes: Sequence[str], where: str
    ) -> Self:
        try:
            recipe = cls.model_validate(said)
        except ValidationError as error:
            raise _explained(cls, error, where) from None
        recipe._path, recipe._changes = path, tuple(changes)
        return recipe

    @property
    def config(self) -> str:
        """What result rows call it: the file's name, and the changes."""
        return " ".join([self._path.name if self._path else type(self).__name__, *self._changes])

    @property
    def arguments(self) -> str:
        """The command line behind a script's name that gives this recipe."""
        return shlex.join([str(self._path or f"RECIPE ({type(self).__name__})"), *self._changes])

    def decides(self, *names: str) -> dict[str, Any]:
        """Some of the settings as plain data, to be hashed or written."""
        return self.model_dump(include=set(names))


class RecipeOfArms(Recipe):
    """A recipe of one method, or of several ``arms``: the same run with some settings changed."""

    varies: ClassVar[type[Settings]]
    """The class with the settings in which arms may differ; the rest is one for all, or they could not be compared."""

    method: str
    """what results call a recipe without arms"""
    output: str
    """each method and seed ends in <output>/<method>/seed<n>"""
    policy: str | None = None
    """where one method and seed go instead"""
    seeds: Seeds = [0]
    arms: dict[str, dict[str, Any] | None] | None = Field(None, min_length=1)
    """{method: {setting: value}}"""

    @classmethod
    def _checked(
        cls, said: Mapping[str, Any], path: Path | None, changes: Sequence[str], where: str
    ) -> Self:
        recipe = super()._checked(said, path, changes, where)
        recipe.methods()
        return recipe

    def methods(self) -> dict[str, Self]:
        """A recipe of its own for each method, by name.

        Raises:
            ConfigError: an arm that is no recipe, or two that would share a folder.
        """
        if self.arms is None:
            return {self.method: self}
        where = str(self._path or type(self).__name__)
        common = self.model_dump(exclude_unset=True) | {"arms": None}
        found: dict[str, Self] = {}
        folders: dict[str, str] = {}
        for method, changes in self.arms.items():
            own, place = changes or {}, f"arms.{method}"
            if unknown := [key for key in own if key not in self.varies.model_fields]:
                problems = [_unknown(key, self.varies.model_fields) for key in unknown]
                fields = [f"{place}.{key}" for key in unknown]
                raise ConfigError(f"{where}: {place}: {'; '.join(problems)}", fields)
            if (other := folders.setdefault(folder_name(method), method)) != method:
                raise ConfigError(
                    f"{where}: the arms {other!r} and {method!r} would share a folder: name them otherwise",
                    [place],
                )
            try:
                arm = type(self).model_validate(common | own | {"method": method})
            except ValidationError as error:
                raise _explained(type(self), error, where, place) from None
            arm._path, arm._changes = self._path, self._changes
            found[method] = arm
        if self.policy and (len(found) > 1 or len(self.seeds) > 1):
            raise ConfigError(
                f"{where}: `policy` names one folder: use it with one method and one seed",
                ["policy"],
            )
        return found


def folder_name(method: str) -> str:
    """``pro-wic-online-dirichlet``: a method's name fit for a folder."""
    return re.sub(r"[^a-z0-9]+", "-", method.lower()).strip("-")


def described(kind: type[Settings]) -> Iterator[str]:
    """A line for each setting of a recipe: name, type and range, default, meaning."""
    schema = kind.model_json_schema()
    parts = schema.get("$defs", {})
    yield from _lines(schema, parts)
    if issubclass(kind, RecipeOfArms):
        yield f"Arms may differ in: {', '.join(kind.varies.model_fields)}."


# ---------------------------------------------------------------- reading


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """YAML in which 1e-4 is a number, as in YAML 1.2; PyYAML takes it for text."""


_Loader.yaml_implicit_resolvers = {
    first: list(found) for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
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
        said = yaml.load(path.read_bytes(), _Loader)  # noqa: S506
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: not YAML ({error})") from None
    if not isinstance(said, dict):
        raise ConfigError(f"{path}: expected a mapping of settings")
    return said


def _change(said: dict[str, Any], change: str) -> None:
    """Write ``a.b=value`` into a mapping."""
    key, equals, text = change.partition("=")
    *outer, last = key.split(".")
    if not (equals and last and all(outer)):
        raise ConfigError(f"got {change!r}, expected key=value, such as learning_rate=1e-4")
    try:
        value = yaml.load(text, _Loader)  # noqa: S506
    except yaml.YAMLError as error:
        raise ConfigError(f"{change!r}: the value is not YAML ({error})", [key]) from None
    inner: Any = said
    for part in outer:
        step = _step(inner, part, key)
        if not isinstance(inner, list) and not isinstance(inner.get(step), dict | list):
            inner[step] = {}
        inner = inner[step]
    inner[_step(inner, last, key)] = value


def _step(inner: Any, part: str, key: str) -> Any:
    """A part of a changed setting's name as an index: into a list by number, from 0."""
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
    problems, fields = [], []
    for found in error.errors(include_url=False):
        names = [str(part) for part in found["loc"]]
        field = ".".join([*([place] if place else []), *names])
        about = f"{field}: " if field else ""
        if found["type"] == "extra_forbidden":
            outer = f"{field.rpartition('.')[0]}: " if "." in field else ""
            problems.append(outer + _unknown(names[-1], _fields_at(kind, found["loc"][:-1])))
        elif found["type"] == "missing":
            problems.append(f"the setting {field!r} is missing")
        elif found["type"] == "value_error":
            reason = found["ctx"]["error"]
            problems.append(about + str(reason))
            if isinstance(reason, ConfigError) and reason.fields:  # a rule across settings
                fields += [".".join(filter(None, (field, name))) for name in reason.fields]
                continue
        else:
            expected = found["msg"].removeprefix("Input should be ").removeprefix("a valid ")
            problems.append(f"{about}got {found['input']!r}, expected {expected}")
        fields.append(field)
    return ConfigError(f"{where}: {'; '.join(problems)}", fields)


def _unknown(name: str, known: Iterable[str]) -> str:
    names = sorted(known)
    near = get_close_matches(name, names, 1)
    meant = f", did you mean {near[0]!r}?" if near else ","
    return f"unknown setting {name!r}{meant} expected one of {names}"


def _fields_at(kind: type[Settings], place: tuple[Any, ...]) -> list[str]:
    """The settings of the part of a recipe where an error was found."""
    schema = kind.model_json_schema()
    parts, at = schema.get("$defs", {}), schema
    for step in place:
        options = [_resolved(option, parts) for option in [at, *at.get("anyOf", ())]]
        inner: dict[str, Any] = {}
        for option in options:
            inner = option.get("properties", {}).get(step) or inner
            inner = (
                option.get("items" if isinstance(step, int) else "additionalProperties") or inner
            )
        at = _resolved(inner, parts)
    options = [_resolved(option, parts) for option in [at, *at.get("anyOf", ())]]
    return [name for option in options for name in option.get("properties", {})]


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
    """The settings that a field holds as parts: itself, in a list, or in a mapping."""
    inner = [field, field.get("items"), field.get("additionalProperties"), *field.get("anyOf", ())]
    for option in inner:
        found = _resolved(option, parts)
        if "properties" in found:
            yield found
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
