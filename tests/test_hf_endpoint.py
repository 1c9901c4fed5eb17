"""spaces/endpoint.py, with the hub's real client, against a local server that speaks the hub's API of endpoints."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from huggingface_hub import constants

from pro_core.policies.soups import interpolate_lattice
from tests.servers.tgi_dialect import serving

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
TOKEN = "hf_the-owners-token-0123456789"
WHEN = "2026-11-27T18:00:00Z"


def script():
    """The script as a module: no folder may be importable as `spaces`."""
    spec = importlib.util.spec_from_file_location("endpoint_script", ROOT / "spaces/endpoint.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Hub:
    """Inference Endpoints as the hub manages them: `states` are what each one goes through, a look at a time."""

    def __init__(self):
        self.url = ""
        self.endpoints: dict[str, dict] = {}
        self.states = [
            ("pending", "waiting for a node"),
            ("initializing", "loading"),
            ("running", ""),
        ]
        self.unhealthy = 1
        self.calls: list[str] = []
        self.created: dict = {}
        self.refusal: tuple[int, str] | None = None

    def look(self, name: str) -> dict:
        one = self.endpoints[name]
        state, message = one["states"].pop(0) if len(one["states"]) > 1 else one["states"][0]
        status = {"state": state, "message": message, "createdAt": WHEN, "updatedAt": WHEN}
        if state in ("running", "initializing"):
            status["url"] = f"{self.url}/served"
        return {"name": name, "type": "authenticated", "healthRoute": "/health"} | {
            "model": one["model"] | {"task": "text-generation"},
            "status": status,
        }

    def app(self) -> FastAPI:
        app = FastAPI(openapi_url=None)
        hub = self

        @app.middleware("http")
        async def token(request: Request, call_next):
            hub.calls.append(f"{request.method} {request.url.path}")
            if request.headers.get("authorization") != f"Bearer {TOKEN}":
                return JSONResponse({"error": "Invalid username or password."}, 401)
            if hub.refusal and request.method == "POST":
                return JSONResponse({"error": hub.refusal[1]}, hub.refusal[0])
            return await call_next(request)

        @app.get("/api/whoami-v2")
        async def whoami():
            return {"name": "me", "type": "user"}

        @app.get("/v2/provider/{owner}")
        async def hardware(owner: str):
            computes = [
                {
                    "id": f"aws-us-east-1-{kind}-x1",
                    "accelerator": "gpu",
                    "instanceType": kind,
                    "instanceSize": "x1",
                    "architecture": kind,
                    "numAccelerators": 1,
                    "memoryGb": 14,
                    "pricePerHour": price,
                    "status": status,
                    "quota": {"maxAccelerators": 4, "usedAccelerators": 0},
                }
                for kind, price, status in (
                    ("nvidia-t4", 0.5, "available"),
                    ("nvidia-l4", 0.8, "available"),
                    ("nvidia-a10g", 1.0, "not_available"),
                )
            ]
            regions = [{"name": "us-east-1", "computes": computes}]
            return {"vendors": [{"name": "aws", "regions": regions}]}

        @app.post("/v2/endpoint/me")
        async def create(request: Request):
            hub.created = body = await request.json()
            hub.endpoints[body["name"]] = {"model": body["model"], "states": list(hub.states)}
            return hub.look(body["name"])

        @app.get("/v2/endpoint/me/{name}")
        async def get(name: str):
            if name not in hub.endpoints:
                return JSONResponse({"error": f"Endpoint {name} not found"}, 404)
            return hub.look(name)

        @app.delete("/v2/endpoint/me/{name}")
        async def delete(name: str):
            del hub.endpoints[name]
            return {}

        @app.post("/v2/endpoint/me/{name}/{what}")
        async def change(name: str, what: str):
            after = {"pause": ["paused"], "scale-to-zero": ["scaledToZero"]}
            states = after.get(what, ["initializing", "running"])
            hub.endpoints[name]["states"] = [(state, "") for state in states]
            return hub.look(name)

        @app.get("/served/health")
        async def health():
            hub.unhealthy -= 1
            return JSONResponse({}, 503 if hub.unhealthy >= 0 else 200)

        return app


@pytest.fixture(scope="module")
def address():
    hub = Hub()
    with serving(hub.app()) as url:
        hub.url = url
        yield hub


@pytest.fixture
def hub(address, monkeypatch):
    """A hub without endpoints, which the real client and the script talk to."""
    fresh = Hub()
    fresh.url = address.url
    address.__dict__.update(fresh.__dict__)
    monkeypatch.setattr(constants, "INFERENCE_ENDPOINTS_ENDPOINT", f"{address.url}/v2")
    monkeypatch.setattr(constants, "ENDPOINT", address.url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return address


@pytest.fixture
def run(hub, capsys, monkeypatch):
    """run(*arguments) -> what the script prints, on both ways out, and how it ended."""
    module = script()
    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)  # also the hub's client's

    def call(*arguments: str, code: int = 0) -> str:
        try:
            module.main(list(arguments))
            ended = None
        except SystemExit as error:
            ended = error.code
        out = capsys.readouterr()
        said = out.out + out.err + (ended if isinstance(ended, str) else "")
        assert bool(ended) == bool(code), said
        assert TOKEN not in said
        assert "Traceback" not in said
        return said

    return call


DEPLOY = ("deploy", "my-policy", "--model", "me/model")


def test_a_deployment_ends_with_the_apps_settings(hub, run):
    said = run(*DEPLOY)
    order = ["$0.80 per hour", "pending: waiting for a node", "initializing: loading", "running"]
    order += [
        "PRO_ENDPOINT_URL=" + hub.url + "/served",
        'PRO_ENDPOINT_TOKEN="$HF_TOKEN"',
        "pause my-policy",
    ]
    places = [said.index(part) for part in order]
    assert places == sorted(places)
    assert hub.calls.count("GET /served/health") == 2  # the server in it had to answer, too
    assert hub.created["compute"]["scaling"] == {
        "minReplica": 0, "maxReplica": 1, "scaleToZeroTimeout": 15,
    }  # fmt: skip
    model = hub.created["model"]
    assert model["command"] == ["vllm", "serve", "/repository"]
    assert model["args"][:2] == ["--served-model-name", "me/model"]
    assert hub.created["type"] == "authenticated"


def test_tgi_gets_the_settings_that_its_dialect_needs(hub, run):
    said = run(*DEPLOY, "--server", "tgi", "--tokens", "2048")
    model = hub.created["model"]
    assert model["env"] == {"MODEL_ID": "/repository", "MAX_TOTAL_TOKENS": "2048"}
    assert model["image"]["custom"]["healthRoute"] == "/health"
    assert "PRO_ENDPOINT_DIALECT=tgi PRO_ENDPOINT_MODEL=me/model" in said


def test_a_lattice_is_named_as_it_lies_in_the_repository(run, tmp_path):
    interpolate_lattice(ROOT / "checkpoints/demo/policy", tmp_path / "lattice", 1)
    given = (*DEPLOY, "--lattice", str(tmp_path / "lattice"), "--dry-run")
    _, body = run(*given, "--server", "tgi").split("\n", 1)
    held = json.loads(body)["model"]["env"]["LORA_ADAPTERS"].split(",")
    assert held[0] == "helpful-100=/repository/lattice/helpful-100" and len(held) == 5
    _, body = run(*given).split("\n", 1)
    args = json.loads(body)["model"]["args"]
    assert args[args.index("--lora-modules") + 1 :] == held
    assert args[args.index("--max-lora-rank") + 1] == "8"
    said = run(*DEPLOY, "--lattice", str(tmp_path), "--dry-run", code=1)
    assert "no lattice of mixtures there" in said


def test_a_dry_run_prints_what_a_deployment_sends_and_sends_nothing(hub, run):
    said = run(*DEPLOY, "--namespace", "me", "--dry-run")
    first, body = said.split("\n", 1)
    assert first == f"POST {hub.url}/v2/endpoint/me" and not hub.calls
    run(*DEPLOY, "--namespace", "me")
    assert hub.created == json.loads(body)


def test_a_dry_run_needs_no_token_and_no_network():
    command = [sys.executable, str(ROOT / "spaces/endpoint.py"), *DEPLOY, "--dry-run"]
    dead = {"HTTPS_PROXY": "http://127.0.0.1:9", "PATH": "/usr/bin"}
    done = subprocess.run(command, env=dead, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("POST https://api.endpoints.huggingface.cloud/v2/endpoint/")


def test_a_name_that_exists_is_left_alone(hub, run):
    run(*DEPLOY)
    before = json.dumps(hub.created)
    said = run("deploy", "my-policy", "--model", "me/other", code=1)
    assert "my-policy exists already (running, me/model)" in said
    assert json.dumps(hub.created) == before
    assert hub.calls.count("POST /v2/endpoint/me") == 1


def test_one_that_fails_says_why_and_where_its_log_is(hub, run):
    hub.states = [("pending", ""), ("failed", "CUDA out of memory")]
    said = run(*DEPLOY, code=1)
    assert "failed: CUDA out of memory" in said
    assert "https://endpoints.huggingface.co/me/endpoints/my-policy/logs" in said
    assert "PRO_ENDPOINT_URL" not in said


def test_waiting_has_an_end_and_says_that_it_goes_on_to_cost(hub, run):
    hub.states = [("initializing", "loading")]
    said = run(*DEPLOY, "--wait", "0", code=1)
    assert "did not start in 0 s" in said and "pause my-policy" in said


@pytest.mark.parametrize("ending", [KeyboardInterrupt(), httpx2.ReadError("gone")])
@pytest.mark.parametrize("command", ["deploy", "resume"])
def test_a_wait_that_ends_early_says_what_goes_on_to_cost(hub, run, monkeypatch, command, ending):
    run(*DEPLOY)
    run("pause" if command == "resume" else "delete", "my-policy")

    def fetch(endpoint):
        raise ending

    hub.states = [("initializing", "loading")]
    monkeypatch.setattr("huggingface_hub.InferenceEndpoint.fetch", fetch)
    said = run(*(DEPLOY if command == "deploy" else ("resume", "my-policy")), code=1)
    assert "python spaces/endpoint.py pause my-policy" in said
    assert ("stopped waiting" if isinstance(ending, KeyboardInterrupt) else "not reached") in said


def test_resuming_has_an_end_too(hub, run):
    run(*DEPLOY)
    run("pause", "my-policy")
    said = run("resume", "my-policy", "--wait", "0", code=1)
    assert "did not start in 0 s" in said and "pause my-policy" in said
    assert "not reached" not in said


def test_one_that_fails_once_it_runs_is_a_sentence_too(hub, run):
    hub.states, hub.unhealthy = [("running", ""), ("failed", "out of memory")], 9
    assert "failed to deploy" in run(*DEPLOY, code=1)


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (402, "wants to be paid (402)"),
        (403, "may not manage Inference Endpoints there (403)"),
        (409, "exists already (409)"),
        (400, "the hub refuses (400) [no such image]"),
    ],
)
def test_refusals_are_sentences(hub, run, code, says):
    hub.refusal = (code, f"no such image {TOKEN}" if code == 403 else "no such image")
    assert says in run(*DEPLOY, code=1)


def test_a_wrong_or_missing_token_ends_in_a_sentence(hub, run, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    said = run(*DEPLOY, code=1)
    assert "does not know the token (401)" in said and "hf_wrong" not in said
    monkeypatch.delenv("HF_TOKEN")
    assert "no token: set HF_TOKEN" in run(*DEPLOY, code=1)
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    said = run(*DEPLOY, "--token-file", str(file))
    assert f'PRO_ENDPOINT_TOKEN="$(cat {file})"' in said


def test_hardware_that_is_not_offered_is_refused(hub, run):
    for kind in ("nvidia-a10g", "nvidia-b900"):
        said = run(*DEPLOY, "--instance", kind, code=1)
        assert f"does not offer {kind} x1" in said and "nvidia-t4 x1, nvidia-l4 x1" in said
    assert not hub.created


def test_an_endpoint_can_be_paused_resumed_and_deleted(hub, run):
    run(*DEPLOY)
    assert "running, me/model" in run("status", "my-policy")
    assert "my-policy: paused" in run("pause", "my-policy")
    assert "paused" in run("status", "my-policy")
    assert "It runs." in run("resume", "my-policy")
    assert "scaledToZero" in run("scale-to-zero", "my-policy")
    assert "my-policy is deleted" in run("delete", "my-policy")
    assert "no endpoint my-policy there (404)" in run("status", "my-policy", code=1)


def test_invalid_names_are_refused(run):
    for arguments, says in (
        (("deploy", "My_Policy", "--model", "me/model"), "expected up to 32 lower-case letters"),
        (("deploy", "x", "--model", "/a/folder"), "hf upload owner/name FOLDER first"),
    ):
        assert says in run(*arguments, code=1)


def test_a_hub_out_of_reach_ends_in_a_sentence(run, monkeypatch):
    monkeypatch.setattr(constants, "INFERENCE_ENDPOINTS_ENDPOINT", "http://127.0.0.1:9/v2")
    assert "the hub was not reached" in run("status", "x", "--namespace", "me", code=1)
