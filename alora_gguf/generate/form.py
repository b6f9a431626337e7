"""The form of a reply under a schema: how its JSON is spaced, or that it is a bare word. It is what
the model was trained to write; a schema only says which values there are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, cast, get_args

from alora_gguf.errors import SchemaError
from alora_gguf.options import ABOUT, Form

FORMS: Final = get_args(Form)

# What json.dumps writes, with and without an indent, and what comes near: one or two spaces, or one
# line break and an indent. A pattern is matched at most once in a place, so that a model that has
# fallen into a run of spaces or line breaks is led out of it. None before the value or after it.
_SPACING: Final[Mapping[str, Mapping[str, Any]]] = {
    "free": {"whitespace_pattern": r"\x20{1,2}|\x0D?\x0A[\x20\x09]{0,16}"},
    "compact": {"whitespace_flexible": False, "item_separator": ",", "key_separator": ":"},
    "json.dumps": {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "},
}


def form_of(schema: Mapping[str, Any]) -> Form:
    """The form that a schema's `x-alora` asks for. Raises SchemaError for one that there is not."""
    about = schema.get(ABOUT)
    form: Any = about.get("form", "free") if isinstance(about, Mapping) else "free"
    if form not in FORMS:
        raise SchemaError(
            f"the JSON Schema asks for the form {form!r} ({ABOUT}), expected one of "
            f"{', '.join(FORMS)}"
        )
    return cast(Form, form)


def words_of(schema: Mapping[str, Any]) -> tuple[str, ...]:
    """The texts of a schema whose form is "text". Raises SchemaError if it is no list of texts."""
    words = schema.get("enum")
    if not (
        isinstance(words, (list, tuple))
        and words
        and all(isinstance(word, str) and word for word in words)
        and schema.keys() <= {"enum", "type", ABOUT}
        and schema.get("type", "string") == "string"
    ):
        raise SchemaError(
            "the JSON Schema asks for bare text, so it must be a list of texts, such as "
            f'{{"enum": ["yes", "no"], "{ABOUT}": {{"form": "text"}}}}'
        )
    return tuple(dict.fromkeys(words))


def grammar_of(schema: Mapping[str, Any], form: Form, options: Mapping[str, Any]) -> str:
    """A schema as llguidance's grammar of replies in a form; `options` are more of its options for
    JSON. By itself llguidance forces the tokens that it would choose for text that can only go on
    in one way; here masks are exact.
    """
    if form == "text":
        start = " | ".join(json.dumps(word, ensure_ascii=False) for word in words_of(schema))
    else:
        spaced = {**options, **_SPACING[form]}
        start = "%json " + json.dumps({**schema, "x-guidance": spaced})
    return f'%llguidance {{"no_forcing": true}}\nstart: {start}'


def written(value: object, form: Form) -> str:
    """A value as a reply of that form has it; where the form is free, as json.dumps has it."""
    if form == "text" and isinstance(value, str):
        return value
    separators = (",", ":") if form == "compact" else (", ", ": ")
    return json.dumps(value, ensure_ascii=False, separators=separators)
