"""Training policies, thin over TRL: with weights in the prompt (``conditional``) or in the reward (``rl``).

Beside them: averages of single-objective policies (``soups``).
"""
