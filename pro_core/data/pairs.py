"""Preference pairs from labels: of responses to one prompt, of refusals, and of texts without a prompt."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal

from pro_core.data.schema import (
    SPLITS,
    DataError,
    LabelledResponse,
    PreferencePair,
    hash_unit,
    one_spelling,
    render_messages,
)

Kind = Literal[
    "pairs",
    "labels",
    "controlled",
    "refusals",
    "harmless_ties",
    "other_prompts",
    "unprompted",
    "constructed_humor",
]
"""How a recipe gets pairs from a file: take its pairs as they are, or pair its responses."""
RATED = ("labels", "controlled", "unprompted")
"""The kinds that pair responses by the ratings that ``objectives`` names."""
GRADED = ("labels", "controlled", "refusals", "harmless_ties")
"""The kinds whose pairs can be far apart or close: their weight is the difference of two ratings."""


def pairs_of_kind(
    kind: Kind,
    responses: Sequence[LabelledResponse],
    objectives: Sequence[str],
    max_per_prompt: int,
) -> list[PreferencePair]:
    """Pairs of any :data:`Kind` that pairs responses; see the function of each kind."""
    match kind:
        case "labels":
            made = [pairs_from_labels(responses, name, max_per_prompt) for name in objectives]
        case "controlled":
            made = [controlled_pairs(responses, name, max_per_prompt) for name in objectives]
        case "unprompted":
            made = [unprompted_pairs(responses, name) for name in objectives]
        case "refusals":
            made = [refusal_pairs(responses, max_per_prompt)]
        case "harmless_ties":
            made = [harmless_ties(responses, max_per_prompt)]
        case "constructed_humor":
            made = [constructed_humor_pairs(responses)]
    return [pair for pairs in made for pair in pairs]


def why_no_pairs(objective: str, responses: Sequence[LabelledResponse]) -> str:
    """Why responses gave no pairs of an objective, as a part of a sentence."""
    labels = Counter(r.labels[objective] for r in responses if objective in r.labels)
    if not labels:
        return f"no response is labelled {objective!r}"
    if len(labels) == 1:
        return f"all {labels.total()} labels {objective!r} are {next(iter(labels))!r}, and a pair needs two that differ"
    return f"no two responses to one prompt differ in their label {objective!r}"


def pairs_from_labels(
    responses: Iterable[LabelledResponse],
    objective: str,
    max_per_prompt: int = 20,
    seed: int = 0,
) -> list[PreferencePair]:
    """Pairs of responses to the same prompt whose labels ``objective`` differ; the higher label is chosen.

    A text that was labelled twice is not paired with itself. A pair's weight is the difference of its labels.

    There are at most ``max_per_prompt`` pairs per prompt, drawn by a generator seeded with the seed and the prompt, so
    that one prompt's pairs do not depend on other prompts.
    """
    by_prompt: dict[tuple[str, str], list[LabelledResponse]] = defaultdict(list)
    for response in responses:
        if response.prompt is not None and objective in response.labels:
            by_prompt[response.split, render_messages(response.prompt)].append(response)
    pairs = []
    for (_, text), rows in by_prompt.items():
        texts = [one_spelling(row.response) for row in rows]
        candidates = [
            (a, b)
            for a, a_text in zip(rows, texts, strict=True)
            for b, b_text in zip(rows, texts, strict=True)
            if a.labels[objective] > b.labels[objective] and a_text != b_text
        ]
        if len(candidates) > max_per_prompt:
            drawn = random.Random(f"{seed}:{objective}:{text}")
            candidates = drawn.sample(candidates, max_per_prompt)
        pairs += [_pair(a, b, objective) for a, b in candidates]
    return pairs


def controlled_pairs(
    responses: Iterable[LabelledResponse], objective: str, max_per_prompt: int = 20, seed: int = 0
) -> list[PreferencePair]:
    """Training pairs that differ in ``objective`` and agree on every other label.

    If two labels conflict (a refusal is truthful but not informative), plain pairs teach two reward models the same
    axis with opposite signs. These pairs teach each label while the others are held fixed. Their source is named
    ``<source>_controlled``.
    """
    groups: dict[str, list[LabelledResponse]] = defaultdict(list)
    for response in responses:
        if response.split == "train" and objective in response.labels:
            others = sorted((k, v) for k, v in response.labels.items() if k != objective)
            groups[f"{response.prompt}{others}"].append(response)
    share = max(1, max_per_prompt // 2)
    return [
        replace(pair, source=f"{pair.source}_controlled", id=f"controlled:{pair.id}")
        for rows in groups.values()
        for pair in pairs_from_labels(rows, objective, share, seed)
    ]


def _pair(chosen: LabelledResponse, rejected: LabelledResponse, objective: str) -> PreferencePair:
    assert chosen.prompt is not None
    return PreferencePair(
        chosen.prompt,
        chosen.response,
        rejected.response,
        objective,
        chosen.source,
        f"{chosen.id}>{rejected.id}",
        chosen.split,
        licence=_licence(chosen, rejected),
        weight=float(chosen.labels[objective] - rejected.labels[objective]),
    )


def _licence(*responses: LabelledResponse) -> str:
    return " and ".join(sorted({r.licence for r in responses} - {""}))


def refusal_pairs(responses: Iterable[LabelledResponse], max_per_prompt: int = 20):
    """Pairs from labelled behaviour (XSTest): ``harmless`` on unsafe prompts, ``helpful`` on safe ones.

    On an unsafe prompt refusal > partial refusal > compliance; on a safe prompt the other way round.
    """
    order = {"compliance": 0, "partial_refusal": 1, "refusal": 2}
    graded = []
    for r in responses:
        if r.labels.get("behaviour") not in order:
            raise DataError(
                f"{r.id}: got the behaviour {r.labels.get('behaviour')!r}, expected one of {list(order)}"
            )
        refused = order[r.labels["behaviour"]]
        label = {"harmless": refused} if r.extra["prompt_unsafe"] else {"helpful": -refused}
        graded.append(replace(r, labels=label, extra={}))
    return [
        pair
        for objective in ("harmless", "helpful")
        for pair in pairs_from_labels(graded, objective, max_per_prompt)
    ]


def harmless_ties(
    responses: Iterable[LabelledResponse], max_per_prompt: int = 20
) -> list[PreferencePair]:
    """Ties under ``harmless`` from labelled behaviour (XSTest): refusing a safe request is not more harmless.

    Without them a harmless model only sees refusals win, and then prefers refusals of safe requests as well. Their
    source is named ``<source>_ties``. They train a reward model and are never scored or graded.
    """
    return [
        replace(
            pair,
            objective="harmless",
            source=f"{pair.source}_ties",
            id=f"tie:{pair.id}",
            tie=True,
        )
        for pair in refusal_pairs(responses, max_per_prompt)
        if pair.objective == "helpful"
    ]


def other_prompt_pairs(pairs: Sequence[PreferencePair], seed: int = 0) -> list[PreferencePair]:
    """Training pairs with answers to other prompts (RRM, arXiv 2409.13156), two for each pair of the train split.

    Each pair of an objective gets another one as its partner, whose prompt differs. The pair's chosen answer is better
    than one of the partner's, either of them; and the partner's two answers, which do not answer this prompt, are a
    tie. So the prompt must say what makes an answer good: liking long answers, whatever was asked, costs. Their source
    is named ``<source>_other_prompts``.
    """
    by_objective: dict[str, list[PreferencePair]] = defaultdict(list)
    for pair in pairs:
        if pair.split == "train" and pair.prompt and not pair.only_trains:
            by_objective[pair.objective].append(pair)
    made = []
    for objective, own in by_objective.items():
        order = random.Random(f"{seed}:{objective}").sample(own, len(own))
        prompts = [render_messages(p.prompt) for p in order]
        for i, pair in enumerate(order):
            turns = (order[(i + n) % len(order)] for n in range(1, len(order)))
            partner = next((p for p in turns if render_messages(p.prompt) != prompts[i]), None)
            if partner is None:  # all pairs have one prompt
                continue
            off = replace(pair, source=f"{pair.source}_other_prompts", augmented=True)
            # Either one: a text that always loses would tell a panel which answer its own pair prefers.
            loser = partner.chosen if hash_unit(f"{seed}:{pair.id}") < 0.5 else partner.rejected
            made += [
                replace(off, rejected=loser, id=f"other:{pair.id}"),
                replace(
                    off,
                    chosen=partner.chosen,
                    rejected=partner.rejected,
                    tie=True,
                    id=f"other tie:{pair.id}",
                ),
            ]
    return made


def unprompted_pairs(responses: Iterable[LabelledResponse], objective: str, seed: int = 0):
    """Pairs of texts without a prompt, drawn at random across labels within each split.

    Each text is in one pair at most. The prompt is empty, so these pairs can train and test a reward model but never
    an adapter.
    """
    pairs = []
    labelled = [r for r in responses if objective in r.labels]
    for r in labelled:
        if r.labels[objective] not in (0, 1):
            raise DataError(
                f"{r.id}: got the label {objective}: {r.labels[objective]!r}, expected 0 or 1"
            )
    for split in SPLITS:
        rows = [r for r in labelled if r.split == split]
        good = [r for r in rows if r.labels[objective] == 1]
        bad = [r for r in rows if r.labels[objective] == 0]
        rng = random.Random(f"{seed}:{objective}:{split}")
        rng.shuffle(good)
        rng.shuffle(bad)
        for a, b in zip(good, bad, strict=False):
            pairs.append(
                PreferencePair(
                    [],
                    a.response,
                    b.response,
                    objective,
                    a.source,
                    f"{a.id}>{b.id}",
                    split,
                    licence=_licence(a, b),
                )
            )
    return pairs


HUMOR_REQUESTS = {
    "train": (
        "Tell me a joke.",
        "Can you make me laugh?",
        "I need a joke about everyday life, please.",
        "Say something funny.",
        "Write a short joke for my newsletter.",
        "Give me a one-liner.",
        "What is a good joke to open a speech with?",
        "Cheer me up with something silly.",
        "Do you know any jokes? I would like to hear one.",
        "Make up a pun for me.",
        "I had a bad day, tell me something funny!",
        "Write a witty line for a birthday card.",
        "My kids want to hear a joke before bed.",
        "Tell me a funny story in one or two sentences.",
    ),
    "validation": ("Got a joke for me?", "Write something humorous about my cat."),
    "test": (
        "Let me hear your best joke.",
        "Be a stand-up comedian: what would you say first?",
        "I want to laugh. Give me something amusing.",
        "Please come up with a funny remark for the office party.",
    ),
}
"""Requests for humor, by split. Written for this project."""


def constructed_humor_pairs(responses: Iterable[LabelledResponse], seed: int = 0):
    """Pairs of a request for humor, with a joke chosen over a headline; marked ``constructed``.

    The public humor texts have no prompts, so an adapter could never learn that a joke was asked for.
    Templates and texts are both split, so nothing in a test pair was seen in training.
    """
    pairs = []
    for pair in unprompted_pairs(responses, "humor", seed):
        requests = HUMOR_REQUESTS[pair.split]
        request = requests[int(hash_unit(pair.id) * len(requests))]
        prompt = [{"role": "user", "content": request}]
        pairs.append(
            PreferencePair(
                prompt,
                pair.chosen,
                pair.rejected,
                "humor",
                "constructed_humor",
                f"request:{pair.id}",
                pair.split,
                constructed=True,
                licence=pair.licence,
            )
        )
    return pairs
