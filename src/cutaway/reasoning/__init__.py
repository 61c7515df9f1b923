"""Reasoning: where a chain of thought decided, and what it depended on."""
