"""Training policies, thin over TRL: with weights in the prompt (``conditional``) or in the reward (``rl``), and averages of
single-objective policies (``soups``)."""
