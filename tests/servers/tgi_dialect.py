"""A small server that speaks TGI's API by the rules of TGI's router, around a real model. It is not TGI.

TGI cannot be installed as a package, so the tests of its dialect run against this server. Routes, checks, messages and
status codes follow the router's sources (3.3):

- `/generate_stream` answers 200 and puts errors into the stream with an `error_type`; `/generate` gives them a status.
- A full server says "Model is overloaded". A wrong key gets a 401 with an empty body, only on routes that generate.
- The last event carries `generated_text`, and there is no `[DONE]`.
- If an `adapter_id`, or a chat's `model`, is not loaded, the base model answers without warning. `/info` and
  `/v1/models` name no adapter.

It behaves as if started with `--disable-grammar-support`. Tools, images, `top_n_tokens` and a chat's `logprobs` are
left out. It can also answer as a Hugging Face Inference Endpoint does while it wakes (503).

    python -m tests.servers.tgi_dialect MODEL_FOLDER --port 8080 --lora-adapters name=/path,other=/path
"""

import argparse
import asyncio
import contextlib
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from pydantic import ValidationError

from tests.servers.tgi_model import Writer
from tests.servers.tgi_rules import (
    Asked,
    ChatRequest,
    GenerateRequest,
    Options,
    Refusal,
    require,
    validate,
)

VERSION = "3.3.6-dev0"


@dataclass
class Log:
    """A record for tests: bodies, headers, and how many requests ran at once."""

    bodies: list[dict] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    running: int = 0
    most_running: int = 0
    finished: list[str] = field(default_factory=list)


class Server:
    """The common part of the routes: requests run side by side and share the model, token by token."""

    def __init__(self, writer: Writer, options: Options, log: Log):
        self.writer, self.options, self.log = writer, options, log
        self.turn = asyncio.Lock()

    async def steps(self, request: GenerateRequest) -> AsyncIterator[dict[str, Any]]:
        """The tokens of one answer; the last one with its ``details``. Raises Refusal."""
        log, options, asked = self.log, self.options, request.parameters
        log.running += 1
        log.most_running = max(log.most_running, log.running)
        outcome, written = "abandoned", 0
        try:
            if log.running > options.max_concurrent_requests:
                raise Refusal("Model is overloaded", "overloaded")
            ids, parameters = validate(asked, request.inputs, request.special, self.writer, options)
            seed = self.writer.seed(parameters)
            steps = self.writer.write(ids, parameters, seed)
            while True:
                async with self.turn:
                    step = await asyncio.to_thread(next, steps, None)
                if step is None:
                    break
                written += 1
                if options.fails_after is not None and written > options.fails_after:
                    options.healthy = False
                    raise Refusal("CUDA error: an illegal memory access", "generation")
                if step["reason"]:
                    counts = {"generated_tokens": written, "input_length": len(ids)}
                    step["details"] = {"finish_reason": step["reason"], "seed": seed, **counts}
                    if asked.return_full_text:
                        step["generated_text"] = request.inputs + step["generated_text"]
                yield step
            outcome = "whole"
        except Refusal as refusal:
            outcome = refusal.event["error_type"]
            raise
        finally:
            log.running -= 1
            log.finished.append(outcome)

    async def events(self, request: GenerateRequest) -> AsyncIterator[dict[str, Any]]:
        """The events of /generate_stream; an error is the last event."""
        asked = request.parameters
        try:
            require(
                asked.best_of in (None, 1), "`best_of` != 1 is not supported when streaming tokens"
            )
            require(
                not asked.decoder_input_details,
                "`decoder_input_details` == true is not supported when streaming tokens",
            )
            index = 0
            async with contextlib.aclosing(self.steps(request)) as steps:
                async for step in steps:
                    index += 1
                    yield {
                        "index": index,
                        "token": step["token"],
                        "generated_text": step["generated_text"],
                        "details": step.get("details") if asked.details else None,
                    }
        except Refusal as refusal:
            yield refusal.event

    async def whole(self, request: GenerateRequest) -> dict[str, Any]:
        """The answer of /generate. Raises Refusal."""
        asked, most = request.parameters, self.options.max_best_of
        best_of = 1 if asked.best_of is None else asked.best_of
        require(best_of <= most, f"`best_of` must be > 0 and <= {most}. Given: {best_of}")
        runs = [[step async for step in self.steps(request)] for _ in range(max(1, best_of))]
        runs.sort(key=lambda run: sum(s["token"]["logprob"] for s in run) / len(run), reverse=True)
        answers = [
            {
                "generated_text": run[-1]["generated_text"],
                **{k: v for k, v in run[-1]["details"].items() if k != "input_length"},
                "prefill": [],
                "tokens": [step["token"] for step in run],
            }
            for run in runs
        ]
        best = dict(answers[0])
        text = best.pop("generated_text")
        if best_of > 1:
            best["best_of_sequences"] = answers[1:]
        return {"generated_text": text, "details": best if asked.details else None}

    def chat(self, chat: ChatRequest) -> GenerateRequest:
        """A chat as TGI reads it: templated, greedy at temperature 0, its `model` as the adapter. Raises Refusal."""
        try:
            inputs = self.writer.tokenizer.apply_chat_template(
                chat.messages, tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # the template's own
            raise Refusal(str(error), "template_error") from None
        greedy, shift = chat.temperature == 0, chat.presence_penalty
        asked = Asked(
            temperature=None if greedy else chat.temperature,
            do_sample=not greedy,
            repetition_penalty=None if shift is None else shift + 2,
            frequency_penalty=chat.frequency_penalty,
            top_p=chat.top_p,
            max_new_tokens=chat.max_tokens,
            stop=chat.stop or [],
            details=True,
            seed=chat.seed,
            adapter_id=None if chat.model == "tgi" else chat.model,
        )
        return GenerateRequest(inputs=inputs, parameters=asked, special=False)

    async def chat_events(self, chat: ChatRequest) -> AsyncIterator[str]:
        """The chunks of a streamed chat; `[DONE]` also follows an error."""
        about = self.about(chat, "chat.completion.chunk")
        async with contextlib.aclosing(self.events(self.chat(chat))) as events:
            async for event in events:
                if "error" in event:
                    yield json.dumps(
                        {"error": {"message": event["error"], "http_status_code": 422}}
                    )
                    continue
                token, details = event["token"], event["details"]
                content = "" if token["special"] else token["text"]
                delta = {"role": "assistant", "content": content}
                finish = details and finish_of(details)
                choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
                yield json.dumps({**about, "choices": [choice], "usage": None})
        yield "[DONE]"

    async def chat_whole(self, chat: ChatRequest) -> dict[str, Any]:
        request = self.chat(chat)
        answer = await self.whole(request)
        message = {"role": "assistant", "content": answer["generated_text"]}
        choice = {"index": 0, "message": message, "logprobs": None}
        choice["finish_reason"] = finish_of(answer["details"])
        return {**self.about(chat, "chat.completion"), "choices": [choice]}

    def about(self, chat: ChatRequest, kind: str) -> dict[str, Any]:
        model = self.options.model_id if chat.model in (None, "tgi") else chat.model
        about = {"object": kind, "id": "", "created": int(time.time()), "model": model}
        return {**about, "system_fingerprint": f"{VERSION}-native"}

    def info(self) -> dict[str, Any]:
        options = self.options
        limits = ("max_concurrent_requests", "max_best_of", "max_stop_sequences")
        return {
            "model_id": options.model_id,
            "model_sha": None,
            "model_pipeline_tag": "text-generation",
            **{name: getattr(options, name) for name in limits},
            "max_input_tokens": options.max_input_tokens,
            "max_total_tokens": options.max_total_tokens,
            "validation_workers": 2,
            "max_client_batch_size": 4,
            "router": "text-generation-router",
            "version": VERSION,
            "sha": None,
            "docker_label": None,
        }


def finish_of(details: dict[str, Any]) -> str:
    """The finish reason as TGI's chats name it: only the model's own end is renamed."""
    reason = details["finish_reason"]
    return "stop" if reason == "eos_token" else reason


async def sse(events: AsyncIterator[Any]) -> AsyncIterator[str]:
    async with contextlib.aclosing(events):  # type: ignore[type-var]
        async for event in events:
            yield f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n"


def build(model, tokenizer, options: Options, log: Log, adapters: str = "") -> FastAPI:
    """The app around a model and the LoRAs of a ``LORA_ADAPTERS`` setting."""
    app = FastAPI(openapi_url=None)
    server = Server(Writer(model, tokenizer, adapters), options, log)
    writing = ("/", "/generate", "/generate_stream", "/v1/chat/completions", "/tokenize")

    @app.middleware("http")
    async def before(request: Request, call_next):
        log.headers.append(dict(request.headers))
        if options.asleep > 0:
            options.asleep -= 1
            return JSONResponse({"error": "503 Service Unavailable"}, 503)
        key = f"Bearer {options.api_key}".lower()
        guarded = options.api_key and request.method == "POST" and request.url.path in writing
        if guarded and request.headers.get("authorization", "").lower() != key:
            return Response(status_code=401)
        return await call_next(request)

    @app.exception_handler(Refusal)
    async def refused(_, refusal: Refusal):
        return JSONResponse(refusal.event, refusal.code)

    @app.exception_handler(ValidationError)
    async def not_deserialized(_, error: ValidationError):
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        what = f"Failed to deserialize the JSON body into the target type: {where}: {first['msg']}"
        return PlainTextResponse(what, 422)

    async def read(request: Request) -> dict:
        body = await request.json()
        log.bodies.append(body)
        return body

    @app.get("/health")
    async def health():
        if not options.healthy:
            raise Refusal("unhealthy", "healthcheck")
        return Response()

    @app.get("/info")
    async def info():
        return server.info()

    @app.get("/v1/models")
    async def models():
        one = {"id": options.model_id, "object": "model", "created": 0}
        return {"object": "list", "data": [one | {"owned_by": options.model_id}]}

    @app.post("/tokenize")
    async def tokenize(request: Request):
        body = GenerateRequest(**await read(request))
        encoded = tokenizer(body.inputs, return_offsets_mapping=True)
        spans = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
        return [{"id": i, "text": body.inputs[a:b], "start": a, "stop": b} for i, (a, b) in spans]

    @app.post("/generate_stream")
    async def generate_stream(request: Request):
        events = server.events(GenerateRequest(**await read(request)))
        return StreamingResponse(sse(events), media_type="text/event-stream")

    @app.post("/generate")
    async def generate(request: Request):
        return await server.whole(GenerateRequest(**await read(request)))

    @app.post("/")
    async def compatible(request: Request):
        body = GenerateRequest(**await read(request))
        if body.stream:
            return StreamingResponse(sse(server.events(body)), media_type="text/event-stream")
        return [await server.whole(body)]

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request):
        chat = ChatRequest(**await read(request))
        if chat.stream:
            server.chat(chat)  # a template's refusal becomes a status, before the stream
            return StreamingResponse(sse(server.chat_events(chat)), media_type="text/event-stream")
        return await server.chat_whole(chat)

    return app


@contextlib.contextmanager
def serving(app, port: int = 0) -> Iterator[str]:
    """Run an ASGI app in a thread and yield its address."""
    server = uvicorn.Server(
        uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error", lifespan="off")
    )
    thread = threading.Thread(target=server.run, daemon=True)
    ready = threading.Event()
    startup = server.startup

    async def announce(sockets=None):
        await startup(sockets)
        ready.set()

    server.startup = announce  # type: ignore[method-assign]
    thread.start()
    assert ready.wait(30), "the test server did not start"
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)


def main() -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--api-key")
    parser.add_argument("--lora-adapters", default="")
    args = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.bfloat16).eval()
    options = Options(api_key=args.api_key, model_id=args.model)
    app = build(model, tokenizer, options, Log(), args.lora_adapters)
    uvicorn.run(app, host="127.0.0.1", port=args.port)


if __name__ == "__main__":
    main()
