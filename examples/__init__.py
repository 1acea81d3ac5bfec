"""Runnable workflows, one file each."""
