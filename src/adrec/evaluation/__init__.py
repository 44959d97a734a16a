"""Offline proof: baselines, replay, off-policy estimates, intervals and the report."""
