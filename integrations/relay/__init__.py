"""Calls of language models from rollouts in other processes: asked for there, made by the process with the accounts."""
