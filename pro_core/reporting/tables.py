"""All tables of README and docs, each from one results file, and their places."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from pro_core.evaluation.results import Rows, read_rows
from pro_core.reporting import (
    adapter_tables,
    judged_tables,
    policy_tables,
    reward_tables,
    theory_tables,
)
from pro_core.reporting.markdown import replace_section

TABLES: dict[str, tuple[str, Callable[[Rows], str]]] = {
    "table:reward_models": ("reward_models.jsonl", reward_tables.reward_models_table),
    "table:opposed": ("reward_models.jsonl", reward_tables.opposed_table),
    "table:judges": ("judges.jsonl", reward_tables.judges_table),
    "table:out_of_distribution": (
        "out_of_distribution.jsonl",
        reward_tables.out_of_distribution_table,
    ),
    "table:ablation": ("ablation.jsonl", reward_tables.ablation_table),
    "table:length": ("length.jsonl", reward_tables.length_table),
    "table:adapter": ("adapter.jsonl", adapter_tables.adapter_table),
    "table:sources": ("adapter.jsonl", adapter_tables.short_adapter_table),
    "table:targets": ("adapter.jsonl", adapter_tables.targets_table),
    "table:unseen": ("adapter.jsonl", adapter_tables.unseen_table),
    "table:safety": ("adapter.jsonl", adapter_tables.safety_table),
    "table:classifier": ("classifier.jsonl", reward_tables.classifier_table),
    "table:weights": ("weights.jsonl", adapter_tables.weights_table),
    "table:wic": ("policies.jsonl", partial(policy_tables.main_table, only="wic")),
    "table:morlhf": ("policies.jsonl", partial(policy_tables.main_table, only="morlhf")),
    "table:demo_soup": ("policies.jsonl", partial(policy_tables.control_table, only="demo_soup")),
    "table:control_quality": (
        "policies.jsonl",
        partial(policy_tables.quality_table, only="control_quality"),
    ),
    "table:policies": ("policies.jsonl", policy_tables.main_table),
    "table:policies_leads": ("policies.jsonl", policy_tables.leads_table),
    "table:policies_control": ("policies.jsonl", policy_tables.control_table),
    "table:policies_equal_weights": ("policies.jsonl", policy_tables.equal_weights_tables),
    "table:policies_texts": ("policies.jsonl", policy_tables.texts_table),
    "table:levels": ("levels.jsonl", policy_tables.levels_table),
    "table:judged": ("judged.jsonl", judged_tables.judged_table_5),
    "table:judged_moslim": ("judged.jsonl", judged_tables.judged_moslim_table),
    "table:judged_trust": ("judged.jsonl", judged_tables.trust_table),
    "table:theorem": ("theorem.jsonl", theory_tables.theorem_table),
    "table:payoff": ("payoff.jsonl", theory_tables.payoff_table),
    "table:convergence": ("convergence.jsonl", theory_tables.convergence_table),
    "table:planted": ("theorem.jsonl", theory_tables.planted_table),
    "table:withheld": ("withheld.jsonl", theory_tables.withheld_table),
}


def fill_tables(document: Path, results: Path) -> None:
    """Write every table for which ``document`` has a place, between ``<!-- name -->`` and ``<!-- /name -->``."""
    if not document.is_file():
        return
    text = document.read_text(encoding="utf-8")
    for name, (file, table) in TABLES.items():
        rows = read_rows(results / file)
        if rows and f"<!-- {name} -->" in text:
            text = replace_section(text, name, table(rows))
    document.write_text(text, encoding="utf-8")
