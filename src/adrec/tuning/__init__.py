"""Tuning: many trainings of one stage with different settings, and what came of each."""
