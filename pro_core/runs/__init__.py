"""How a run goes: its recipe, its script, and the one way we train."""
