"""What a judge is asked: versioned templates, of our own or in files.

A template is a system text and a user text with places such as ``{prompt}``. Places are filled in one pass, so text of
an answer that looks like a place stays as it is. Every other brace is text. Official templates use other names for the
same places (:data:`PLACES`), and are read as they are published.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pro_core.data.objectives import Message
from pro_core.data.schema import DataError
from pro_core.system.storage import content_hash

PLACES = {
    **dict.fromkeys(
        ("prompt", "instruction", "QUESTION", "question", "query", "user_query"), "prompt"
    ),
    **dict.fromkeys(("first", "output_1", "ANSWER_A", "answer_a"), "first"),
    **dict.fromkeys(("second", "output_2", "ANSWER_B", "answer_b"), "second"),
    **dict.fromkeys(("answer", "response", "answer_1"), "answer"),
    **dict.fromkeys(("reference", "ref_answer_1", "REFERENCE"), "reference"),
    **dict.fromkeys(("prompt_2", "question_2"), "prompt_2"),
    **dict.fromkeys(("answer_2",), "answer_2"),
    **dict.fromkeys(("reference_2", "ref_answer_2"), "reference_2"),
    **dict.fromkeys(("prompt_1", "question_1"), "prompt"),
    **dict.fromkeys(("facts",), "facts"),
    **dict.fromkeys(("criterion",), "criterion"),
}
"""What templates call a place -> the place."""
_PLACE = re.compile(r"\{(" + "|".join(sorted(PLACES, key=len, reverse=True)) + r")\}")
_TURN = re.compile(r"<\|im_start\|>(system|user)\n(.*?)\s*<\|im_end\|>", re.DOTALL)


@dataclass(frozen=True)
class Template:
    """One kind of question.

    Attributes:
        name, version: of ours; a file's name, and 0.
        labels: the words that a judge answers with, such as A if the first text is better and B if the second is; None
            where it writes.
    """

    name: str
    version: int
    user: str
    system: str = ""
    labels: tuple[str, ...] | None = None

    @property
    def identity(self) -> str:
        """Name, version and a hash of the text: a verdict on another text is another verdict."""
        text = content_hash([self.system, self.user, self.labels])[:8]
        return f"{self.name}-{self.version}-{text}"

    @property
    def places(self) -> set[str]:
        """The places that it has."""
        return {PLACES[name] for name in _PLACE.findall(self.user + self.system)}

    def messages(self, **texts: str) -> list[Message]:
        """The question with its places filled.

        Raises:
            DataError: a place without a text.
        """
        if missing := sorted(self.places - set(texts)):
            raise DataError(
                f"the template {self.name} has a place for {', '.join(missing)}, which is not given here"
            )

        def fill(text: str) -> str:
            return _PLACE.sub(lambda found: texts[PLACES[found[1]]], text)

        turns = [("system", self.system), ("user", self.user)]
        return [{"role": role, "content": fill(text)} for role, text in turns if text]


def read_template(path: str | Path, needed: set[str], labels: tuple[str, ...] | None) -> Template:
    """The template of a file: YAML with ``user`` (or the official ``prompt_template``) and perhaps ``system`` (or
    ``system_prompt``) and ``labels``; or a text, whose turns may stand between ``<|im_start|>`` and ``<|im_end|>``.

    Args:
        needed: the places that it must have. labels: where the file names none; None for a judge that writes.

    Raises:
        DataError: not such a file, or a place is missing.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        data = yaml.safe_load(text) if path.suffix in (".yaml", ".yml", ".json") else text
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"{path}: not a template that can be read ({error})") from None
    if isinstance(data, Mapping):
        user, system = (
            _named(data, "user", "prompt_template"),
            _named(data, "system", "system_prompt"),
        )
        named = data.get("labels")
        if isinstance(named, list) and len(named) == 2:
            labels = (str(named[0]), str(named[1]))
    else:
        turns = dict(_TURN.findall(text))
        user, system = turns.get("user", "" if turns else text), turns.get("system", "")
    template = Template(path.stem, 0, user, system, labels)
    if missing := sorted(needed - template.places):
        raise DataError(f"{path}: the template has no place for {', '.join(missing)}")
    return template


def _named(data: Mapping[str, Any], *names: str) -> str:
    return next((data[name] for name in names if isinstance(data.get(name), str)), "")
