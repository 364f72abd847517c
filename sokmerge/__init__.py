"""Merge networks, probe the loss landscape between them, and explain one by the other."""

__version__ = "0.1.0"
