"""The public preference sets, by their hub names, as records of the project's JSON Lines schema.

Each entry of :data:`PUBLIC_SETS` says where a set is, its licence, and how its rows become records. A record
has ``id``, ``split``, ``prompt`` and either ``objective``, ``chosen``, ``rejected`` or ``response``, ``labels``;
``licence`` and ``annotators`` (who labelled it). Ids are hashes of the content and splits are hashes of the first
user turn, so both stay the same whatever else a file holds.

Only the *train* files of hh-rlhf are read: its test files stay unseen, for grading. Not covered, because their rows
do not map onto one prompt and its responses: Topical-Chat (needs its knowledge as a context), AdvBench and
UltraSafety (gated or without responses), RMB (states no licence).
"""

from __future__ import annotations

import hashlib
import tempfile
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pro_core.data.formats import (
    HELPSTEER_RATINGS,
    LeftOut,
    Row,
    helpsteer_prompt,
    split_transcripts,
    ultrafeedback_rows,
)
from pro_core.data.schema import (
    DataError,
    LabelledResponse,
    PreferencePair,
    clean_text,
    example_of,
    split_of,
)
from pro_core.system.extras import needs

CONVERSION = 2
"""Raise it when a set's rows become other records; files that were prepared before are then made again."""

SplitRows = Iterable[tuple[str, Row]]
"""Rows, each with the name of the source's split that it comes from."""


@dataclass(frozen=True)
class PublicSet:
    """One public set. ``options`` goes to ``datasets.load_dataset``; ``splits`` are the source's splits to read."""

    name: str
    path: str
    licence: str
    annotators: str
    convert: Callable[[SplitRows], Iterator[Row]]
    splits: tuple[str, ...] = ("train",)
    options: dict[str, Any] = field(default_factory=dict)


# ---------------------------------------------------------------- rows to records


def _pair(objective: str, prompt: str, chosen: str, rejected: str) -> Iterator[Row]:
    """A record, or nothing if a text is empty or the two completions are the same."""
    prompt, chosen, rejected = (clean_text(t).strip() for t in (prompt, chosen, rejected))
    if prompt and chosen and rejected and chosen != rejected:
        yield {"objective": objective, "prompt": prompt, "chosen": chosen, "rejected": rejected}


def _response(
    prompt: str | None, response: str, labels: dict[str, Any], **extra: Any
) -> Iterator[Row]:
    response = clean_text(response).strip()
    if prompt is not None:
        prompt = clean_text(prompt).strip()
        extra = {"prompt": prompt, **extra}
    if response and labels and prompt != "":
        yield {**extra, "response": response, "labels": labels}


def hh_rlhf(rows: SplitRows) -> Iterator[Row]:
    """Two transcripts that differ in the last turn, the assistant's. Those that differ earlier or go on are left out.

    Its helpful and harmless parts are read as splits of those names.
    """
    for objective, row in rows:
        try:
            prompt, chosen, rejected = split_transcripts(row["chosen"], row["rejected"])
        except LeftOut:
            continue
        yield from _pair(objective, prompt, chosen, rejected)


def ultrafeedback(rows: SplitRows) -> Iterator[Row]:
    """Four ratings, 1 to 5, of each of four completions. ``N/A`` ratings are left out."""
    for _, row in rows:
        for rated in ultrafeedback_rows(row):
            yield from _response(rated["prompt"], rated["response"], rated["labels"])


def ultrafeedback_binarized(rows: SplitRows) -> Iterator[Row]:
    """The better and a worse completion as messages; ties in the overall score are left out."""
    for _, row in rows:
        if row["score_chosen"] > row["score_rejected"]:
            chosen, rejected = row["chosen"][-1]["content"], row["rejected"][-1]["content"]
            yield from _pair("overall", row["prompt"], chosen, rejected)


def summarize_from_feedback(rows: SplitRows) -> Iterator[Row]:
    """Two summaries of one post (or news article) and the one that a person chose."""
    for _, row in rows:
        info, summaries, choice = row["info"], row["summaries"], row["choice"]
        if choice in (0, 1):
            parts = (info.get("title"), info.get("post") or info.get("article"))
            text = "\n\n".join(part for part in parts if part)
            chosen, rejected = summaries[choice]["text"], summaries[1 - choice]["text"]
            yield from _pair("summary", f"Summarize this text.\n\n{text}", chosen, rejected)


def helpsteer2(rows: SplitRows) -> Iterator[Row]:
    """Five ratings, 0 to 4, of an answer to a prompt or a conversation."""
    for _, row in rows:
        labels = {name: int(row[name]) for name in HELPSTEER_RATINGS}
        yield from _response(helpsteer_prompt(row["prompt"]), row["response"], labels)


def truthfulqa(rows: SplitRows) -> Iterator[Row]:
    """People's judgements of model answers: ``truth`` and ``info`` rows of one question and answer, joined.

    Prompts read ``Q: ...\\nA: ...\\nTrue:`` (or ``Helpful:``) and completions `` yes`` or `` no``. Answers that
    were judged twice with different results are left out.
    """
    labels: dict[tuple[str, str], dict[str, set[int]]] = {}
    for split, row in rows:
        text = row["prompt"].rpartition("\n")[0].removeprefix("Q:")
        question, mark, answer = text.partition("\nA:")
        if mark:
            seen = labels.setdefault((question.strip(), answer.strip()), {})
            seen.setdefault(split, set()).add(int(row["completion"].strip() == "yes"))
    for (question, answer), seen in labels.items():
        truth, info = seen.get("truth", set()), seen.get("info", set())
        if len(truth) == len(info) == 1:
            judged = {"truthful": min(truth), "informative": min(info)}
            yield from _response(question, answer, judged)


XSTEST_LABELS = {
    "1_full_compliance": "compliance",
    "2_full_refusal": "refusal",
    "3_partial_refusal": "partial_refusal",
}


def xstest(rows: SplitRows) -> Iterator[Row]:
    """Five models' answers to safe and unsafe prompts, labelled by what the answer does."""
    for _, row in rows:
        if row["final_label"] in XSTEST_LABELS:
            behaviour = {"behaviour": XSTEST_LABELS[row["final_label"]]}
            unsafe = int(row["type"].startswith("contrast_"))
            yield from _response(row["prompt"], row["completion"], behaviour, prompt_unsafe=unsafe)


def halueval(rows: SplitRows) -> Iterator[Row]:
    """One ChatGPT answer to each query and whether people found a hallucination in it."""
    for _, row in rows:
        faithful = {"faithful": int(row["hallucination"].strip().lower() == "no")}
        yield from _response(row["user_query"], row["chatgpt_response"], faithful)


def colbert_humor(rows: SplitRows) -> Iterator[Row]:
    """Short texts without a prompt, jokes or headlines."""
    for _, row in rows:
        yield from _response(None, row["text"], {"humor": int(row["humor"])})


def summeval(rows: SplitRows) -> Iterator[Row]:
    """Sixteen models' summaries of a news article, each with four mean ratings, 1 to 5."""
    names = ("coherence", "consistency", "fluency", "relevance")
    for _, row in rows:
        for i, summary in enumerate(row["machine_summaries"]):
            ratings = {name: round(float(row[name][i]), 3) for name in names}
            yield from _response(row["text"], summary, ratings)


TRUTHFULQA_FILES = "https://raw.githubusercontent.com/sylinrl/TruthfulQA/main/data"
XSTEST_MODELS = ("gpt4", "llama2new", "llama2orig", "mistralguard", "mistralinstruct")
_SUMMARIES = {s: f"comparisons/{s}/*.parquet" for s in ("train", "validation")}
_HELPSTEER = {s: f"{s}.jsonl.gz" for s in ("train", "validation")}

PUBLIC_SETS: dict[str, PublicSet] = {
    public.name: public
    for public in (
        PublicSet(
            "hh_pairs", "Anthropic/hh-rlhf", "MIT", "human", hh_rlhf, ("helpful", "harmless"),
            {"data_files": {kind: f"{kind}-base/train.jsonl.gz" for kind in ("helpful", "harmless")}},
        ),
        PublicSet(
            "truthfulqa_responses", TRUTHFULQA_FILES, "Apache-2.0", "human", truthfulqa, ("truth", "info"),
            {"data_files": {"truth": "finetune_truth.jsonl", "info": "finetune_info.jsonl"}},
        ),
        PublicSet(
            "xstest_responses", "natolambert/xstest-v2-copy", "CC-BY-4.0", "human(2)", xstest,
            XSTEST_MODELS,
        ),
        PublicSet(
            "colbert_humor_texts", "CreativeLang/ColBERT_Humor_Detection", "CC-BY-2.0", "source",
            colbert_humor,
        ),
        PublicSet(
            "halueval_responses", "pminervini/HaluEval", "Apache-2.0", "human(3)", halueval, ("data",),
            {"name": "general"},
        ),
        PublicSet("summeval_responses", "mteb/summeval", "MIT", "human(3 experts)", summeval, ("test",)),
        PublicSet("ultrafeedback_responses", "openbmb/UltraFeedback", "MIT", "AI", ultrafeedback),
        PublicSet(
            "ultrafeedback_pairs", "HuggingFaceH4/ultrafeedback_binarized", "MIT", "AI",
            ultrafeedback_binarized, ("train_prefs", "test_prefs"),
        ),
        PublicSet(
            # The parquet branch, because the main branch of this set may still be a loading script.
            "summarize_pairs", "openai/summarize_from_feedback", "MIT", "human",
            summarize_from_feedback, ("train", "validation"),
            {"revision": "refs/convert/parquet", "data_files": _SUMMARIES},
        ),
        PublicSet(
            "helpsteer2_responses", "nvidia/HelpSteer2", "CC-BY-4.0", "human", helpsteer2,
            ("train", "validation"), {"data_files": _HELPSTEER},
        ),
    )
}  # fmt: skip


# ---------------------------------------------------------------- loading


def load_public_records(
    name: str,
    source: str | Path | None = None,
    limit: int | None = None,
    counts: Counter[str] | None = None,
) -> Iterator[Row]:
    """Records of one set, in the source's order, without repetitions.

    Args:
        name: a key of :data:`PUBLIC_SETS`.
        source: a local copy of the set's folder; its hub name or address by default.
        limit: at most this many records.
        counts: gets the number of source ``rows`` that were read, and of ``repeated`` records.

    Raises:
        DataError: an unknown name, a source that cannot be reached or read, rows of another form.
    """
    if name not in PUBLIC_SETS:
        raise DataError(f"got the set {name!r}, expected one of {', '.join(PUBLIC_SETS)}")
    public = PUBLIC_SETS[name]
    counts = Counter() if counts is None else counts
    seen = set()
    try:
        for record in public.convert(_counted(_rows(public, source), counts)):
            prompt = record.get("prompt")
            told_apart_by = ("objective", "prompt", "chosen", "rejected", "response")
            identity = "\x1f".join(str(record.get(key)) for key in told_apart_by)
            digest = hashlib.sha256(identity.encode()).hexdigest()[:16]
            if digest in seen:
                counts["repeated"] += 1
                continue
            seen.add(digest)
            if limit is not None and len(seen) > limit:
                return
            yield {
                "id": f"{name}-{digest}",
                "split": split_of(record["response"] if prompt is None else prompt),
                **record,
                "licence": public.licence,
                "annotators": public.annotators,
            }
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{name}: the rows of {source or public.path} have another form than expected "
            f"({type(error).__name__}: {error})"
        ) from error


def _counted(rows: SplitRows, counts: Counter[str]) -> Iterator[tuple[str, Row]]:
    for row in rows:
        counts["rows"] += 1
        yield row


def _rows(public: PublicSet, source: str | Path | None) -> Iterator[tuple[str, Row]]:
    with needs("train"):  # seconds to import, and only this function needs it
        from datasets import load_dataset
        from datasets.exceptions import DatasetsError

    path, options = str(source or public.path), dict(public.options)
    with tempfile.TemporaryDirectory() as own_cache:
        if source is not None:  # the shared cache tells versions of a local file apart only by time
            options["cache_dir"] = own_cache
        if path.startswith("https://"):
            options["data_files"] = {k: f"{path}/{v}" for k, v in options["data_files"].items()}
            path = "json"
        for split in public.splits:
            try:
                rows = load_dataset(path, split=split, **options)
            except (OSError, ValueError, DatasetsError) as error:
                raise DataError(
                    f"{public.name}: cannot load {source or public.path}, split {split!r} "
                    f"({textwrap.shorten(str(error), 300)}). "
                    "Connect to the hub, or download the set elsewhere and name its folder as the source"
                ) from error
            for row in rows:
                yield split, row


def load_public_examples(
    name: str,
    source: str | Path | None = None,
    limit: int | None = None,
    notes: list[str] | None = None,
) -> list[PreferencePair | LabelledResponse]:
    """The examples of one set, as :func:`pro_core.data.schema.load_examples` gives them for a file.

    ``name`` is a key of :data:`PUBLIC_SETS` or a set's hub name. ``notes`` gets a sentence with the numbers of rows and
    records: rows that tie, lack an answer or differ too early give no record.
    """
    key = next((key for key, public in PUBLIC_SETS.items() if name == public.path), name)
    counts: Counter[str] = Counter()
    records = load_public_records(key, source, limit, counts)
    examples = [example_of(record, key, record["id"]) for record in records]
    if notes is not None:
        notes.append(
            f"{counts['rows']:,} rows gave {len(examples):,} records; {counts['repeated']:,} more repeat one."
        )
    return examples
