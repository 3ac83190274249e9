"""Launching: set-up of a machine, its small model, a doctor, and the command line."""
