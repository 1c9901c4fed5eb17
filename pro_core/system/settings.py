"""Typed settings: the base of recipes and of their parts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pro_core.system.extras import needs

with needs("train"):
    from pydantic import BaseModel, ConfigDict, Field, model_validator

Count = Annotated[int, Field(gt=0)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
TopP = Annotated[float, Field(gt=0, le=1)]
AtLeastZero = Annotated[int, Field(ge=0)]
Several = Annotated[list[Positive], Field(min_length=1)]
Seeds = Annotated[list[int], Field(min_length=1)]
Names = Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]


class Settings(BaseModel):
    """Named settings: a recipe, or a part of one. They are checked when they are made, and do not change."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        validate_default=True,
    )

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, data: Any) -> Any:
        return _plain(data)


def _plain(data: Any) -> Any:
    """Python values as YAML has them: a tuple as a list, a path as its name."""
    if isinstance(data, Mapping):
        return {key: _plain(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_plain(value) for value in data]
    return str(data) if isinstance(data, Path) else data
