"""Latent adversarial paraphrasing: train on the hidden-state shift that acts like a request's worst wording."""
