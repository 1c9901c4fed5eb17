"""The refusals of TGI's router, in its order and its words, for ``tgi_dialect.py``."""

from dataclasses import dataclass
from typing import Any

from pydantic import AliasChoices, BaseModel, Field

from tests.servers.tgi_model import Parameters, Writer, processors_of

DEFAULT_LENGTH = 1024
CODES = {
    "validation": 422,
    "template_error": 422,
    "generation": 424,
    "overloaded": 429,
    "healthcheck": 503,
}
SENTENCES = {
    "validation": "Input validation error: {}",
    "template_error": "Template error: {}",
    "generation": "Request failed during generation: {}",
}


class Refusal(Exception):
    """TGI's error: a sentence and its type."""

    def __init__(self, error: str, error_type: str = "validation"):
        super().__init__(error)
        self.code = CODES[error_type]
        sentence = SENTENCES.get(error_type, "{}").format(error)
        self.event = {"error": sentence, "error_type": error_type}


@dataclass
class Options:
    """How the server was started, and its faults; tests change them while it runs.

    asleep: how many requests the proxy of an Inference Endpoint answers with 503 before the server is up.
    fails_after: how many tokens are written before the model's process dies, and with it the health check.
    """

    api_key: str | None = None
    model_id: str = "test"
    max_total_tokens: int = 512
    max_input_tokens: int = 500
    max_concurrent_requests: int = 8
    max_best_of: int = 2
    max_stop_sequences: int = 4
    asleep: int = 0
    fails_after: int | None = None
    healthy: bool = True


class Asked(BaseModel):
    """TGI's GenerateParameters."""

    best_of: int | None = None
    temperature: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    typical_p: float | None = None
    do_sample: bool = False
    max_new_tokens: int | None = Field(None, ge=0)
    return_full_text: bool | None = None
    stop: list[str] = []
    truncate: int | None = Field(None, ge=0)
    details: bool = False
    decoder_input_details: bool = False
    seed: int | None = Field(None, ge=0)
    grammar: Any = None
    adapter_id: str | None = None


class GenerateRequest(BaseModel):
    inputs: str
    parameters: Asked = Asked()
    stream: bool = False
    special: bool = (
        True  # not part of the API: chats are templated, with their special tokens in them
    )


class ChatRequest(BaseModel):
    messages: list[dict[str, Any]]
    model: str | None = None
    max_tokens: int | None = Field(
        None, ge=0, validation_alias=AliasChoices("max_tokens", "max_completion_tokens")
    )
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = Field(None, ge=0)
    stop: list[str] | None = None
    stream: bool = False


def require(kept: bool, sentence: str) -> None:
    if not kept:
        raise Refusal(sentence)


def validate(
    asked: Asked, inputs: str, special: bool, writer: Writer, options: Options
) -> tuple[list[int], Parameters]:
    """The prompt's tokens and the checked parameters, in the order of the router's checks. Raises Refusal."""
    p, most = asked, options.max_total_tokens
    given = (p.temperature, p.top_k, p.top_p, p.typical_p)
    sampled = p.do_sample or any(value is not None for value in given)
    best_of = 1 if p.best_of is None else p.best_of
    require(best_of <= 1 or sampled, "you must use sampling when `best_of` is > 1")
    require(p.temperature is None or p.temperature > 0, "`temperature` must be strictly positive")
    penalty = p.repetition_penalty
    require(penalty is None or penalty > 0, "`repetition_penalty` must be strictly positive")
    frequency = p.frequency_penalty or 0.0
    require(-2 <= frequency <= 2, "`frequency_penalty` must be >= -2.0 and <= 2.0")
    require(p.top_p is None or 0 < p.top_p < 1, "`top_p` must be > 0.0 and < 1.0")
    require(p.typical_p is None or 0 < p.typical_p < 1, "`typical_p` must be > 0.0 and < 1.0")
    require(p.top_k is None or p.top_k > 0, "`top_k` must be strictly positive")
    require(p.max_new_tokens != 0, "`max_new_tokens` must be strictly positive")
    stops = options.max_stop_sequences
    require(
        len(p.stop) <= stops, f"`stop` supports up to {stops} stop sequences. Given: {len(p.stop)}"
    )
    require(p.seed is None or best_of <= 1, "`seed` must not be set when `best_of` > 1")
    require(bool(inputs), "`inputs` cannot be empty")
    longest = options.max_input_tokens
    require(
        p.truncate is None or 0 < p.truncate <= longest,
        f"`truncate` must be strictly positive and less than {longest}. Given: {p.truncate}",
    )
    ids = writer.encode(inputs, special, p.truncate)
    new = min(most - len(ids) if p.max_new_tokens is None else p.max_new_tokens, DEFAULT_LENGTH)
    require(
        len(ids) + new <= most,
        f"`inputs` tokens + `max_new_tokens` must be <= {most}. "
        f"Given: {len(ids)} `inputs` tokens and {new} `max_new_tokens`",
    )
    require(
        len(ids) <= longest, f"`inputs` must have less than {longest} tokens. Given: {len(ids)}"
    )
    require(p.grammar is None, "grammar is not supported")
    made = processors_of(p)
    return ids, Parameters(new, p.stop, sampled, p.seed, made, frequency, p.adapter_id)
