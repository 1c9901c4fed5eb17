"""How the servers of reward models are asked, and how their answers are read: four dialects.

| dialect | request | its traps, and what is done |
|---|---|---|
| ``vllm`` | ``/classify``: ``messages``, or ``input``, a list of texts | a sigmoid, or a softmax across heads |
| ``tei`` | ``/predict``: ``inputs``, a list of texts or of pairs | the same; outputs come sorted by score |
| ``sglang`` | ``/classify``: ``text``, a list | ``/v1/classify`` always has a softmax: not used |
| ``openrlhf`` | ``/get_reward``: ``query``, ``prompts``, ``labels`` | one output |

vLLM and TEI are asked for outputs without activation (``use_activation``, ``raw_scores``), and
:meth:`pro_core.rewards.endpoint.HostedModel.check` proves that they obey. TEI's outputs are mapped by label.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

from pro_core.data.objectives import Message
from pro_core.http import Client, Failure
from pro_core.rewards.formats import template_of
from pro_core.rewards.specs import RewardModelSpec
from pro_core.system.storage import StorageError

Row = list[Message] | tuple[str, ...]
"""What a model reads: a conversation, one text, or a pair of texts."""
BATCH = 16
"""Texts in one request, where a server takes several."""


class Served(NamedTuple):
    """What a server says of its model: its name (with a revision where the server knows it), the labels of its outputs
    in order, and how many texts one request may hold."""

    name: str = ""
    labels: tuple[str, ...] = ()
    most: int = BATCH


class Dialect(ABC):
    """How one kind of server is asked.

    Attributes:
        route: its path. known: the paths that people paste with the address. flagged: it can be asked with and without
            an activation function.
    """

    route: str
    known: tuple[str, ...] = ()
    flagged = False

    def __init__(self, client: Client, spec: RewardModelSpec):
        self.spec, self.explain = spec, client.explain
        path = client.address.path
        for suffix in (self.route, *self.known, "/v1"):
            path = path.removesuffix(suffix)
        self.base, self.served = path, Served(spec.model)

    def look(self, client: Client) -> Served:
        """What the server has. Raises Failure if it is not there."""
        return self.served

    def check_format(self) -> None:
        """Raise a StorageError if the server cannot be sent the spec's input format."""
        if self.spec.input_format == "chat":
            raise StorageError(
                f"the dialect {self.spec.dialect} is sent texts: take an input format with {{prompt}}, {{completion}} "
                "and the marks of the model's turns"
            )

    @abstractmethod
    def body(self, rows: Sequence[Row], activated: bool) -> dict[str, Any]:
        """The body of a request; ``activated``: with the model's activation function, where one can choose."""

    @abstractmethod
    def read(self, data: Any) -> list[Any]:
        """The outputs of each text, in the request's order. Another shape raises KeyError, TypeError and the like."""

    def ask(self, client: Client, path: str) -> Any:
        """The JSON of a cheap route; None where the server does not have it. Raises Failure if it is not there."""
        answer = client.ask("GET", self.base + path)
        if answer.status in (401, 403):
            raise self.explain.answer(answer.status, answer.data)
        return answer.data if answer.success and isinstance(answer.data, dict) else None


class Vllm(Dialect):
    """vLLM with ``--runner pooling``. A conversation is rendered by the server, one per request."""

    route, known, flagged = "/classify", ("/pooling", "/score", "/models"), True

    def look(self, client: Client) -> Served:
        listed = self.ask(client, "/v1/models")
        models = {str(m["id"]): m for m in (listed or {}).get("data") or () if "id" in m}
        name = self.spec.model or next(iter(models), "")
        # A server that reads less than is to be kept refuses the request.
        self.most = min(
            self.spec.max_length, models.get(name, {}).get("max_model_len") or self.spec.max_length
        )
        self.served = Served(name, most=1 if self.spec.input_format == "chat" else BATCH)
        return self.served

    def check_format(self) -> None:
        if "{sep}" in template_of(self.spec.input_format):
            raise StorageError(
                "vLLM classifies one text: take the input format 'chat', or a text without {sep}"
            )

    def body(self, rows: Sequence[Row], activated: bool) -> dict[str, Any]:
        chat = isinstance(rows[0], list)
        # The reward is read at the end of a conversation, so that its beginning is what can be cut.
        body: dict[str, Any] = {
            "use_activation": activated,
            "truncate_prompt_tokens": self.most,
            "truncation_side": "left" if chat else "right",
        }
        if self.served.name:
            body["model"] = self.served.name
        return body | ({"messages": rows[0]} if chat else {"input": [row[0] for row in rows]})

    def read(self, data: Any) -> list[Any]:
        parts = sorted(data["data"], key=lambda part: part["index"])
        if [part["index"] for part in parts] != list(range(len(parts))):
            raise ValueError
        return [part["probs"] for part in parts]

    def tokens(self, client: Client, row: Row) -> list[int]:
        """The first tokens of what the model reads; empty where the server does not say."""
        text = {"messages": row} if isinstance(row, list) else {"prompt": row[0]}
        special = {"add_special_tokens": not isinstance(row, list)}
        body = text | special | {"add_generation_prompt": False}
        answer = client.ask(
            "POST", f"{self.base}/tokenize", body | {"model": self.served.name or None}
        )
        tokens = answer.data.get("tokens") if isinstance(answer.data, dict) else None
        return list(tokens[:2]) if answer.success and isinstance(tokens, list) else []


class Tei(Dialect):
    """Text Embeddings Inference: encoders, whose two segments are a pair of texts."""

    route, flagged = "/predict", True

    def look(self, client: Client) -> Served:
        info = self.ask(client, "/info") or {}
        kind = info.get("model_type")
        classifier = kind.get("classifier") if isinstance(kind, dict) else None
        if isinstance(kind, dict) and classifier is None:
            raise Failure(
                f"The endpoint {client.host} serves a model of another kind ({', '.join(kind)}), not a classifier."
            )
        names = (classifier or {}).get("id2label") or {}
        labels = tuple(str(names[i]) for i in sorted(names, key=int))
        name = " ".join(str(info[key]) for key in ("model_id", "model_sha") if info.get(key))
        most = min(int(info.get("max_client_batch_size") or BATCH), BATCH)
        self.served = Served(name or self.spec.model, labels, most)
        return self.served

    def body(self, rows: Sequence[Row], activated: bool) -> dict[str, Any]:
        return {
            "inputs": [list(row) for row in rows],
            "raw_scores": not activated,
            "truncate": True,
        }

    def read(self, data: Any) -> list[Any]:
        return [self._in_order({str(one["label"]): one["score"] for one in row}) for row in data]

    def _in_order(self, scores: dict[str, Any]) -> list[Any]:
        labels: Sequence[str] = self.served.labels
        if not labels:  # LABEL_0, LABEL_1 ..., which is what a model without names of its own has
            labels = sorted(scores, key=lambda label: int(label.removeprefix("LABEL_")))
        if set(labels) != set(scores):
            raise ValueError
        return [scores[label] for label in labels]


class Sglang(Dialect):
    """SGLang with ``--is-embedding``; its native route gives the outputs as they are."""

    route, known = "/classify", ("/v1/classify",)

    def look(self, client: Client) -> Served:
        info = self.ask(client, "/get_model_info") or {}
        self.served = Served(str(info.get("model_path") or self.spec.model))
        return self.served

    def body(self, rows: Sequence[Row], activated: bool) -> dict[str, Any]:
        model = {"model": self.served.name} if self.served.name else {}
        return model | {"text": [row[0] for row in rows]}

    def read(self, data: Any) -> list[Any]:
        return [one["embedding"] for one in (data if isinstance(data, list) else [data])]


class OpenRlhf(Dialect):
    """OpenRLHF's reward server, or one of your own in its shape."""

    route = "/get_reward"

    def body(self, rows: Sequence[Row], activated: bool) -> dict[str, Any]:
        texts = [row[0] for row in rows]
        return {"query": texts, "prompts": [""] * len(texts), "labels": [""] * len(texts)}

    def read(self, data: Any) -> list[Any]:
        return [one if isinstance(one, list) else [one] for one in data["rewards"]]


DIALECTS: dict[str, type[Dialect]] = {
    "vllm": Vllm,
    "tei": Tei,
    "sglang": Sglang,
    "openrlhf": OpenRlhf,
}
