"""What all sections of the configuration have in common: frozen, unknown keys refused, numbers finite."""

from __future__ import annotations

import os
import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr, field_validator

from data.answers.kinds import check_kind_name

NAME = r"[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9_-])?"  # safe in file names on every file system
NAME_BYTES = 100
Name = Field(
    pattern=f"^{NAME}$",
    max_length=NAME_BYTES,
    description="Short name, used in file names and tables; `mean` is reserved.",
)
MAX_COUNT = 2**31 - 1  # largest count: the files store 32-bit integers
MIN_TEMPERATURE = 0.01  # below, logits / temperature overflow a float, and vLLM takes it for greedy
MAX_TEMPERATURE = 2.0  # vLLM takes no higher one


Text = Annotated[str, Field(min_length=1, pattern=r"\S")]
ValidAnswerKind = Annotated[str, AfterValidator(check_kind_name)]


class Section(BaseModel):
    """A frozen section that refuses unknown keys.

    Numbers must be finite numbers, not `true` or "3"; an integer will do for a float, but not the reverse. (Fields for
    tuples are not strict, since TOML only has lists; nor are switches, since --set may spell them True.)
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False, strict=True)

    @field_validator("*")
    @classmethod
    def _is_text(cls, value: Any) -> Any:
        texts = [each for each in (value if isinstance(value, tuple) else (value,)) if isinstance(each, str)]
        if any(re.search("[\0\ud800-\udfff]", text) for text in texts):
            raise ValueError("has a NUL character or bytes that are not UTF-8, which no prompt and no file may have")
        return value


class PlacedSection(Section):
    """A section that names files, which may be elsewhere on another machine (`runtime.places`).

    The places are not among its fields, so they change neither the frozen config nor a fingerprint.
    """

    _places: dict[str, str] = PrivateAttr(default_factory=dict)

    def here(self, name: str) -> str:
        """A path that the section names, as it is on this machine; any other name unchanged."""
        places = {os.path.normpath(old): new for old, new in self._places.items()}
        path = os.path.normpath(name)  # ./models is models
        for old in sorted(places, key=len, reverse=True):
            if path == old or path.startswith(f"{old}/"):
                return os.path.normpath(places[old] + path[len(old) :])
        return name
