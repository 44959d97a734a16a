"""adrec: a two-stage ad recommender for one CPU machine."""
