"""Weights in the reward: MORLHF, PRO-MORLHF and MOSLIM, by GRPO, RLOO, PPO or online DPO."""
