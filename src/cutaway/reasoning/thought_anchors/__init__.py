"""Thought anchors (Bogdan et al. 2025, arXiv 2506.19143): the sentences of a trace that decide its answer."""
