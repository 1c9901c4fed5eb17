"""Deploy a model behind a Hugging Face Inference Endpoint; watch, pause and delete it.

    python spaces/endpoint.py deploy my-policy --model me/my-policy --dry-run    # what would be sent; no network
    HF_TOKEN=... python spaces/endpoint.py deploy my-policy --model me/my-policy                    # vLLM
    HF_TOKEN=... python spaces/endpoint.py deploy my-policy --model me/my-policy --server tgi       # TGI
    HF_TOKEN=... python spaces/endpoint.py status my-policy      # also: pause, resume, scale-to-zero, delete

The endpoint sleeps after 15 minutes without a request and wakes at the next one. You pay for it: `deploy` prints the
price per hour before it starts; a paused endpoint costs nothing. A lattice of mixtures (`train/soups.py`) that is in
the model's repository as `lattice/` is served with `--lattice FOLDER`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import httpx2
from huggingface_hub import HfApi, InferenceEndpoint, set_client_factory
from huggingface_hub.errors import (
    HfHubHTTPError,
    InferenceEndpointError,
    InferenceEndpointTimeoutError,
)

IMAGES = {
    "vllm": "vllm/vllm-openai:v0.32.0",
    "tgi": "ghcr.io/huggingface/text-generation-inference:3.3.5",
}
MODEL = "/repository"
"""Where an Inference Endpoint puts the files of the model's repository."""
PRICES = "https://huggingface.co/docs/inference-endpoints/support/pricing"
EVERY = 5
"""Seconds between two looks at an endpoint that is starting."""
ENDED = ("paused", "scaledToZero")
FAILED = ("failed", "updateFailed")
NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def payload(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments of ``HfApi.create_inference_endpoint``."""
    return {
        "name": options.name,
        "repository": options.model,
        "framework": "pytorch",
        "task": "text-generation",
        "accelerator": options.accelerator,
        "vendor": options.vendor,
        "region": options.region,
        "instance_type": options.instance,
        "instance_size": options.size,
        "min_replica": 0,
        "max_replica": 1,
        "scale_to_zero_timeout": options.sleep_after,
        "type": "authenticated",
        "namespace": options.namespace,
        **(tgi(options) if options.server == "tgi" else vllm(options)),
    }


def tgi(options: argparse.Namespace) -> dict[str, Any]:
    """TGI's container and its settings, which are environment variables."""
    env = {"MODEL_ID": MODEL, "MAX_TOTAL_TOKENS": str(options.tokens)}
    if held := mixtures(options.lattice):
        env["LORA_ADAPTERS"] = ",".join(f"{name}={place}" for name, place in held.items())
    url = options.image or IMAGES["tgi"]
    return {"custom_image": {"url": url, "port": 80, "healthRoute": "/health"}, "env": env}


def vllm(options: argparse.Namespace) -> dict[str, Any]:
    """vLLM's container and its settings, which are arguments."""
    args = ["--served-model-name", options.model, "--max-model-len", str(options.tokens)]
    args += ["--port", "8000"]
    if held := mixtures(options.lattice):
        from pro_core.policies.soups import greatest_rank

        args += ["--enable-lora", "--max-loras", "4", "--max-cpu-loras", str(max(4, len(held)))]
        args += ["--max-lora-rank", str(greatest_rank(options.lattice))]
        args += ["--lora-modules", *(f"{name}={place}" for name, place in held.items())]
    url = options.image or IMAGES["vllm"]
    return {
        "custom_image": {"url": url, "port": 8000, "healthRoute": "/health"},
        "container_command": ["vllm", "serve", MODEL],
        "container_args": args,
    }


def mixtures(lattice: Path | None) -> dict[str, str]:
    """Each mixture of the lattice with its folder on the endpoint. Raises ValueError for a folder that holds none."""
    if lattice is None:
        return {}
    from pro_core.prompting.policy_config import PolicyConfig

    policy = PolicyConfig.read(lattice) if lattice.is_dir() else None
    if policy is None or not policy.mixtures:
        raise ValueError(f"{lattice}: no lattice of mixtures there: make one with train/soups.py")
    return {name: f"{MODEL}/lattice/{name}" for name in policy.mixtures}


class _NotSent(Exception):
    """The request that the hub's client was about to send."""


def what_would_be_sent(arguments: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """(URL, body) of the request, as the hub's own client writes it; nothing leaves this machine."""

    def keep(request: httpx2.Request) -> httpx2.Response:
        raise _NotSent(str(request.url), json.loads(request.content))

    set_client_factory(lambda: httpx2.Client(transport=httpx2.MockTransport(keep)))
    try:
        whose = arguments["namespace"] or "YOUR-NAME"
        HfApi().create_inference_endpoint(**arguments | {"namespace": whose, "token": False})
    except _NotSent as kept:
        url, body = kept.args
        return url, body
    finally:
        set_client_factory(lambda: httpx2.Client(follow_redirects=True, timeout=60))
    raise AssertionError("the hub's client sent no request")


def price(api: HfApi, options: argparse.Namespace) -> float:
    """Dollars per hour for one replica. Raises ValueError for hardware that the hub does not offer now."""
    offered = api.list_inference_endpoints_hardware(namespace=options.namespace, token=api.token)
    asked = (options.vendor, options.region, options.accelerator, options.instance, options.size)
    near = []
    for one in offered:
        if one.status in ("not_available", "deprecated"):
            continue
        offer = (one.vendor, one.region, one.accelerator, one.instance_type, one.instance_size)
        if offer == asked:
            return one.price_per_hour
        if offer[:3] == asked[:3]:
            near.append(f"{one.instance_type} {one.instance_size}")
    alternatives = ", ".join(near[:8]) or "nothing"
    raise ValueError(
        f"the hub does not offer {options.instance} {options.size} ({options.accelerator}) at {options.vendor} "
        f"{options.region} now; there it offers {alternatives}: see {PRICES}"
    )


def wait(endpoint: InferenceEndpoint, seconds: float) -> None:
    """Wait until the endpoint answers, at most ``seconds``, and print each change of its status.

    Raises:
        ValueError, InferenceEndpointError: it failed, or somebody paused it.
        InferenceEndpointTimeoutError: the time is up.
    """
    start, printed = time.monotonic(), ""
    while True:
        status = endpoint.raw["status"]
        passed = time.monotonic() - start
        now = f"{endpoint.status}" + (f": {status['message']}" if status.get("message") else "")
        if now != printed:
            print(f"{passed:4.0f} s  {now}", flush=True)
            printed = now
        if endpoint.status in FAILED:
            where = f"https://endpoints.huggingface.co/{endpoint.namespace}/endpoints/{endpoint.name}/logs"
            raise ValueError(f"{endpoint.name} failed ({now}); its log is at {where}")
        if endpoint.status in ENDED:
            raise ValueError(
                f"{endpoint.name} is {endpoint.status} now, and will not start by itself"
            )
        if endpoint.status == "running":
            # The hub's own wait ends when the server in it answers, too.
            left = max(1, int(seconds - passed))
            endpoint.wait(timeout=left, refresh_every=EVERY)
            return
        if passed > seconds:
            raise InferenceEndpointTimeoutError(f"{endpoint.name} did not start in {seconds:.0f} s")
        time.sleep(EVERY)
        endpoint.fetch()


def wait_or_warn(endpoint: InferenceEndpoint, options: argparse.Namespace) -> None:
    """As :func:`wait`; when the wait ends early, a message says that the endpoint goes on to cost money."""
    try:
        wait(endpoint, options.wait)
    except (
        KeyboardInterrupt,
        InferenceEndpointTimeoutError,
        HfHubHTTPError,
        httpx2.TransportError,
    ) as error:
        print(f"still starting, which costs money: python spaces/endpoint.py pause {options.name}")
        if isinstance(error, KeyboardInterrupt):
            sys.exit("error: stopped waiting")
        raise


def settings(endpoint: InferenceEndpoint, options: argparse.Namespace) -> list[str]:
    """What to export for the app. The token is named, not shown."""
    file = options.token_file and shlex.quote(str(options.token_file))
    token = f'"$(cat {file})"' if file else '"$HF_TOKEN"'
    lines = [f"export PRO_ENDPOINT_URL={endpoint.url}", f"export PRO_ENDPOINT_TOKEN={token}"]
    if options.server == "tgi":
        lines += [f"export PRO_ENDPOINT_DIALECT=tgi PRO_ENDPOINT_MODEL={options.model}"]
    if options.lattice:
        lines += [f"export PRO_POLICY={shlex.quote(str(options.lattice))}"]
    return lines


def deploy(api: HfApi, options: argparse.Namespace) -> None:
    try:
        existing = find(api, options)
    except HfHubHTTPError as error:
        if error.response.status_code != 404:
            raise
    else:
        raise ValueError(
            f"{options.name} exists already ({existing.status}, {existing.repository}): look at it with status, wake "
            "it with resume, or delete it first"
        )
    hourly = price(api, options)
    print(
        f"{options.name}: {options.server} with {options.model} on {options.instance} {options.size}, ${hourly:.2f} "
        f"per hour while it starts and runs, nothing while it sleeps or is paused ({PRICES})"
    )
    endpoint = api.create_inference_endpoint(**payload(options), token=api.token)
    wait_or_warn(endpoint, options)
    print("It runs. For the app:\n  " + "\n  ".join(settings(endpoint, options)))
    print(f"When you are done: python spaces/endpoint.py pause {options.name}")


def find(api: HfApi, options: argparse.Namespace) -> InferenceEndpoint:
    return api.get_inference_endpoint(options.name, namespace=options.namespace, token=api.token)


def change(api: HfApi, options: argparse.Namespace) -> None:
    """Every command but deploy."""
    named = {"namespace": options.namespace, "token": api.token}
    if options.command == "delete":
        api.delete_inference_endpoint(options.name, **named)
        print(f"{options.name} is deleted")
        return
    does = {
        "status": api.get_inference_endpoint,
        "pause": api.pause_inference_endpoint,
        "resume": api.resume_inference_endpoint,
        "scale-to-zero": api.scale_to_zero_inference_endpoint,
    }
    endpoint = does[options.command](options.name, **named)
    print(
        f"{endpoint.name}: {endpoint.status}, {endpoint.repository}, {endpoint.url or 'no address'}"
    )
    if options.command == "resume":
        wait_or_warn(endpoint, options)
        print("It runs.")


def explained(error: HfHubHTTPError, options: argparse.Namespace, token: str) -> str:
    """What the hub's refusal means, without the token."""
    code = error.response.status_code
    sentences = {
        401: "the hub does not know the token (401): set HF_TOKEN to one that may manage Inference Endpoints",
        402: "the hub wants to be paid (402): add credits or a card at https://huggingface.co/settings/billing",
        403: "the token may not manage Inference Endpoints there (403): give it that right, or name a --namespace",
        404: f"no endpoint {options.name} there (404): look at https://endpoints.huggingface.co",
        409: f"{options.name} exists already (409): name another, or delete it first",
    }
    detail = " ".join((error.server_message or "").replace(token, "(token)").split())[:300]
    sentence = sentences.get(code, f"the hub refuses ({code})")
    return sentence + (f" [{detail}]" if detail and code != 401 else "")


def arguments(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for command in ("deploy", "status", "pause", "resume", "scale-to-zero", "delete"):
        one = commands.add_parser(command)
        one.add_argument("name", help="the endpoint's name: lower-case letters, digits and -")
        one.add_argument("--namespace", help="its owner (you)")
        one.add_argument("--token-file", type=Path, help="file with the token (HF_TOKEN)")
        one.add_argument("--wait", type=float, default=1800, metavar="S", help="seconds (1800)")
        if command == "deploy":
            one.add_argument("--model", required=True, help="hub id of the model, owner/name")
            one.add_argument("--server", choices=sorted(IMAGES), default="vllm")
            one.add_argument("--image", help=f"its container ({IMAGES})".replace("%", "%%"))
            one.add_argument("--tokens", type=int, default=4096, help="prompt and answer (4096)")
            one.add_argument("--lattice", type=Path, help="mixtures, also in the repository")
            one.add_argument("--vendor", default="aws")
            one.add_argument("--region", default="us-east-1")
            one.add_argument("--accelerator", default="gpu")
            one.add_argument("--instance", default="nvidia-l4", help="(nvidia-l4)")
            one.add_argument("--size", default="x1")
            one.add_argument("--sleep-after", type=int, default=15, metavar="MINUTES", help="(15)")
            one.add_argument("--dry-run", action="store_true", help="print, send nothing")
    options = parser.parse_args(given)
    if not NAME.fullmatch(options.name):
        parser.error(
            f"got the name {options.name!r}, expected up to 32 lower-case letters, digits and -"
        )
    if options.command == "deploy" and not HUB_ID.fullmatch(options.model):
        parser.error(
            f"got the model {options.model!r}, expected a hub id, owner/name: an endpoint loads no folder of yours "
            "(hf upload owner/name FOLDER first)"
        )
    return options


def main(given: list[str] | None = None) -> None:
    options = arguments(given)
    try:
        if options.command == "deploy" and options.dry_run:
            url, body = what_would_be_sent(payload(options))
            print(f"POST {url}\n{json.dumps(body, indent=2)}")
            return
        file = options.token_file
        token = (file.read_text() if file else os.environ.get("HF_TOKEN", "")).strip()
        if not token:
            raise ValueError("no token: set HF_TOKEN or name a --token-file")
        api = HfApi(token=token)
        deploy(api, options) if options.command == "deploy" else change(api, options)
    except HfHubHTTPError as error:
        sys.exit(f"error: {explained(error, options, token)}")
    except httpx2.TransportError as error:
        sys.exit(f"error: the hub was not reached: {type(error).__name__}")
    except (ValueError, OSError, InferenceEndpointError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
