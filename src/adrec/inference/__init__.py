"""Inference: the trained ranker as a function from requests to calibrated scores."""
