"""Judged benchmarks: AlpacaEval 2, Arena-Hard, MT-Bench and HaluEval 2.0, and how far to trust their judge."""

from pro_core.evaluation.judged.alpaca import length_controlled_win_rate, win_rate
from pro_core.evaluation.judged.arena import arena_win_rates

__all__ = ["arena_win_rates", "length_controlled_win_rate", "win_rate"]
