"""Environments: one file each, chosen by `kind`; see `rlkit.env` for what an environment is."""
