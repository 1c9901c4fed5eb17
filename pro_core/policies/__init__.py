"""Training policies, thin over TRL: weights in the prompt (`wic`: PRO-WIC and RiC, with what their online rounds are
made of) and weights in the reward (`morlhf` by GRPO or RLOO, `online_dpo`, `ppo`; `soups`), and what they share."""
