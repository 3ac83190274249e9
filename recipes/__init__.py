"""Recipes: runnable YAML files, shipped as package data."""
