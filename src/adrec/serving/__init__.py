"""Serving: a recommender behind HTTP."""
