"""Models: they compute. The training loop optimises them, the bundle keeps them."""
