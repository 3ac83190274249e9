"""Rewards: one file each, chosen by `kind`; see `rlkit.reward` for what a reward is."""
