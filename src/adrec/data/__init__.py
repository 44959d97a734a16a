"""Logs: layouts, checks, splits, and worlds to test on."""
