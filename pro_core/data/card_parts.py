"""Parts of every model card: its head, and the licences of base model and data, ``unknown`` if they state none."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData, model_info, try_to_load_from_cache
from huggingface_hub.repocard import metadata_load

from pro_core.data.public_sets import PUBLIC_SETS
from pro_core.data.schema import DataError
from pro_core.data.sources import examples_of, is_public
from pro_core.data.training_pairs import UNKNOWN, Entry
from pro_core.system.bundled_models import MINILM, resolve_encoder
from pro_core.system.storage import replacing

HUB_NAMES = {public.path: name for name, public in PUBLIC_SETS.items()}
SECONDS = 5
"""Seconds that the hub may take to answer which licence a model has."""


def base_licence(model: str) -> str:
    """The licence on a model's own card, from its folder, the hub's cache, or else the hub.

    Only the card's fields are downloaded. Any error gives ``unknown``: a card is no reason to lose a run.
    """
    folder = Path(resolve_encoder(model) if model == MINILM else model)
    if folder.is_dir():
        return _stated(folder / "README.md")
    with contextlib.suppress(Exception):  # offline, no such model, a card that is not YAML ...
        cached = try_to_load_from_cache(model, "README.md")
        if isinstance(cached, str):
            return _stated(Path(cached))
        card = model_info(model, expand=["cardData"], timeout=SECONDS).card_data
        return _licence_of(card.to_dict() if card else {})
    return UNKNOWN


def _stated(card: Path) -> str:
    with contextlib.suppress(Exception):
        return _licence_of(metadata_load(card) or {})
    return UNKNOWN


def _licence_of(fields: Mapping[str, Any]) -> str:
    """``license``, or the card's ``license_name`` if the hub does not know the licence."""
    named = fields.get("license")
    if named == "other":
        named = fields.get("license_name") or named
    if isinstance(named, list):
        named = ", ".join(map(str, named))
    return one_line(str(named)) if named else UNKNOWN


def data_licences(entry: Mapping[str, Any], data_dir: str | Path) -> list[str]:
    """The licences of an entry of a recipe's ``data``: the entry's own, the public set's, or else those of the rows.

    A file that no longer exists gives none; it was there when the checkpoint was trained.
    """
    if entry.get("licence"):
        return [str(entry["licence"])]
    path = str(entry["path"])
    if is_public(Path(data_dir) / path, path):
        return [s.licence for s in PUBLIC_SETS.values() if path in (s.name, s.path)]
    try:
        return sorted({e.licence or UNKNOWN for e in examples_of(path, data_dir)})
    except DataError:
        return [UNKNOWN]


def licence_text(licences: Iterable[str]) -> str:
    """``licence MIT``; of several ``licences MIT, unknown``."""
    names = sorted({one_line(name) for name in licences if name}) or [UNKNOWN]
    return f"licence{'s' if len(names) > 1 else ''} {', '.join(names)}"


def one_line(text: str, longest: int = 120) -> str:
    """A name from somebody else's file, made safe for one line and for a table of a card."""
    clean = " ".join(text.split()).replace("|", "/")
    return clean if len(clean) <= longest else clean[: longest - 1] + "…"


# ---------------------------------------------------------------- lines


def card_head(
    title: str, licence: str | None, base: str, *tags: str, library: str | None = None
) -> list[str]:
    """Front matter and title. A base model in a local folder is not named to the hub."""
    fields = ModelCardData(
        license=licence or UNKNOWN,
        base_model=None if _is_folder(base) else base,
        library_name=library,
        tags=list(dict.fromkeys((*tags, "preference", "multi-objective"))),
    )
    return ["---", *fields.to_yaml().splitlines(), "---", f"# {title}", ""]


def named_base(model: str) -> str:
    """A base model's name and licence."""
    return f"`{shown_path(model)}` ({licence_text([base_licence(model)])})"


def _is_folder(model: str) -> bool:
    return Path(model).is_absolute() or Path(model).exists()


def shown_path(path: str) -> str:
    """A path as it is, or only the folder's name where the path would reveal the machine."""
    return Path(path).name if Path(path).is_absolute() else path


def name_of(path: str) -> str:
    """The name of a data source: our name of a public set, or the file's name without its endings."""
    return one_line(HUB_NAMES.get(path, Path(path).name.split(".")[0]))


def entry_line(entry: Entry) -> str:
    """What one entry of a panel's recipe contributed to its training."""
    source = entry.source
    pairs = ", ".join(f"{name} {n:,}" for name, n in entry.pairs.items()) or "none"
    made_up = f", {entry.constructed:,} of them with made-up prompts" if entry.constructed else ""
    return (
        f"- {name_of(source.path)} ({source.kind}; splits {', '.join(source.splits)}): "
        f"{licence_text(entry.licences)}; pairs: {pairs}{made_up}"
    )


def write_card(folder: Path, lines: Iterable[str]) -> None:
    """``README.md`` in a checkpoint's folder."""
    with replacing(folder / "README.md") as partial:
        partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
