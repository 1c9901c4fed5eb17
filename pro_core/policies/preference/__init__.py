"""Training on preference pairs: SFT and the DPO family, MODPO and PRO-DPO."""
