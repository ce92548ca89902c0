"""The base of everything a user configures: strict, immutable, and helpful when wrong."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)
from typing_extensions import Self

from mlet.errors import ConfigError
from mlet.reading import reading
from mlet.registry import UnknownName


class Settings(BaseModel):
    """A node of a configuration tree; unknown keys are errors that suggest the nearest one."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @classmethod
    def parse(cls, values: Mapping[str, Any], origin: str) -> Self:
        """Validate ``values``; ``origin`` says where they come from, for the error.

        Raises:
            ConfigError: a key is unknown or missing, or a value is of the wrong kind or range.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError(f"{origin}: {_explain(error, cls, values)}") from None

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read and validate a YAML file.

        Raises:
            ConfigError: the file is missing, not YAML, or not valid.
        """
        return cls.parse(load_yaml(path), str(path))

    def to_yaml(self) -> str:
        """The complete configuration, defaults included."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


class Choice(Settings):
    """The base of settings of several kinds, told apart by ``name``: it stands for any of them."""

    @classmethod
    def kind_of(cls, values: Mapping[str, Any]) -> type[Choice]:
        """The class of some settings, by their name.

        Raises:
            ValueError: there is none.
        """
        return cls

    @model_validator(mode="wrap")
    @classmethod
    def _as_its_kind(cls, value: Any, validate: ModelWrapValidatorHandler[Self]) -> Any:
        kind = cls.kind_of(value) if isinstance(value, Mapping) else cls
        return validate(value) if kind is cls else kind.model_validate(value)


class _Once(yaml.SafeLoader):
    """Refuses a key that is given twice, of which YAML's loader silently keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As SafeLoader's; see there."""
        seen: list[Any] = []
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                text, mark = f"{key!r} is given twice", key_node.start_mark
                raise yaml.constructor.ConstructorError(None, None, text, mark)
            seen.append(key)
        return super().construct_mapping(node, deep)


def load_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping.

    Raises:
        ConfigError: the file is missing or unreadable, not YAML, or no mapping.
    """
    path = Path(path)
    absent = "No such file or directory"
    with reading(path, ConfigError, "it should be a YAML file", missing=absent):
        try:
            values = yaml.load(path.read_text(encoding="utf-8"), _Once)
        except UnicodeDecodeError:
            raise ConfigError(f"{path}: not UTF-8 text; is it a YAML file?") from None
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            place = f", line {mark.line + 1}" if mark else ""
            problem = getattr(error, "problem", None) or "not YAML"
            raise ConfigError(f"{path}{place}: {problem}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected 'key: value' lines")
    return values


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``changes`` put over it, key by key at every depth."""
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        merged[key] = merge(old, value) if both else value  # type: ignore[arg-type]
    return merged


def first_difference(one: Any, other: Any, place: str = "") -> str | None:
    """Where two trees of settings begin to differ, with both values; None if they do not."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for key in dict.fromkeys([*one, *other]):
            inner = f"{place}.{key}" if place else str(key)
            found = first_difference(one.get(key), other.get(key), inner)
            if found is not None:
                return found
        return None
    return None if one == other else f"{place} ({one} then, {other} now)"


def parse_assignments(assignments: Sequence[str]) -> dict[str, Any]:
    """``["a.b=1", …]`` as a tree; values are YAML.

    Raises:
        ConfigError: an assignment has no ``=``, or its value is no YAML.
    """
    tree: dict[str, Any] = {}
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals or not path:
            raise ConfigError(f"--set {assignment!r}: expected key=value, as training.epochs=3")
        try:
            value = yaml.load(text, _Once)
        except yaml.YAMLError:
            raise ConfigError(f"--set {assignment!r}: the value is not YAML") from None
        for step in reversed(path.split(".")):
            value = {step: value}
        tree = merge(tree, value)
    return tree


def _walk(
    cls: type[BaseModel], location: tuple[int | str, ...], values: Any
) -> tuple[list[str], type[BaseModel] | None]:
    """The user's spelling of a place in the tree, and the node whose key it is."""
    path: list[str] = []
    node = last = _kind(cls, values)
    in_mapping = False
    for step in location:
        path.append(str(step))
        if isinstance(values, Mapping):
            values = values.get(step)
        if in_mapping:  # a key of the user's own choice: what it holds is still to come
            last, in_mapping = node, False
        else:
            last, field = node, node.model_fields.get(str(step)) if node else None
            in_mapping = field is not None and get_origin(field.annotation) is dict
            node = next(_nodes(field.annotation), None) if field else None
        if not in_mapping:
            node = _kind(node, values)
    return path, last if location else node


def _kind(node: type[BaseModel] | None, values: Any) -> type[BaseModel] | None:
    """The class of some values, where it depends on a name among them."""
    if node and issubclass(node, Choice) and isinstance(values, Mapping):
        with suppress(ValueError):
            return node.kind_of(values)
    return node


def _nodes(annotation: Any) -> Iterator[type[BaseModel]]:
    """The settings classes within a field's annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _nodes(part)


def _explain(error: ValidationError, cls: type[BaseModel], values: Any) -> str:
    """All problems on one line, in the user's spelling of the keys."""
    problems = []
    for item in error.errors():
        path, node = _walk(cls, item["loc"], values)
        key = ".".join(path) or "configuration"
        if item["type"] == "extra_forbidden":
            known = list(node.model_fields) if node else []
            near = difflib.get_close_matches(path[-1], known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
            problems.append(f"unknown key {key!r}; {hint}")
        elif item["type"] == "missing":
            problems.append(f"{key!r} is missing")
        elif isinstance(cause := item.get("ctx", {}).get("error"), UnknownName):
            problems.append(f"'{'.'.join([*path, 'name'])}': {cause}")
        else:
            problems.append(f"{key!r}: {item['msg']} (got {item['input']!r})")
    return "; ".join(problems)
