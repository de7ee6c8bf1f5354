"""What all sections of the configuration have in common: frozen, unknown keys refused, numbers finite."""

from __future__ import annotations

import os
import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr, field_validator

from data.answers.kinds import check_kind_name

NAME = r"[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9_-])?"  # in file names: none that a file system changes or takes apart
NAME_BYTES = 100
Name = Field(
    pattern=f"^{NAME}$", max_length=NAME_BYTES, description="Short name, used in file names and tables; not mean."
)
MANY = 2**31 - 1  # of what is counted: the files have 32 bits for it
COLDEST = 0.01  # below, logits over the temperature leave the range of a float, and vLLM takes it for greedy


Text = Annotated[str, Field(min_length=1, pattern=r"\S")]
ValidAnswerKind = Annotated[str, AfterValidator(check_kind_name)]


class Section(BaseModel):
    """A frozen section that refuses unknown keys.

    Numbers are numbers, and finite: no `true`, no "3"; a whole one may stand for a float, not the other way round. (A
    list stands for a tuple, TOML having no other, and a switch may be spelt True in --set: such fields are not strict.)
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False, strict=True)

    @field_validator("*")
    @classmethod
    def _is_text(cls, value: Any) -> Any:
        texts = [each for each in (value if isinstance(value, tuple) else (value,)) if isinstance(each, str)]
        if any(re.search("[\0\ud800-\udfff]", text) for text in texts):
            raise ValueError("has a NUL character or bytes that are not UTF-8, which no prompt and no file can have")
        return value


class PlacedSection(Section):
    """A section that names files, which a run finds elsewhere on another machine (`runtime.places`).

    The places are no part of its fields: nothing that is frozen, and no fingerprint, differs by them.
    """

    _places: dict[str, str] = PrivateAttr(default_factory=dict)

    def here(self, name: str) -> str:
        """A path, or what else the section names, as it is called on this machine."""
        places = {os.path.normpath(old): new for old, new in self._places.items()}
        path = os.path.normpath(name)  # ./models is models
        for old in sorted(places, key=len, reverse=True):
            if path == old or path.startswith(f"{old}/"):
                return os.path.normpath(places[old] + path[len(old) :])
        return name
