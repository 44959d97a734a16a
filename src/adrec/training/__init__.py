"""Training: one loop for both models, resumable at any step."""
