"""How harmless reasoning before a request weakens refusal: by length, by content, by cue, and through which heads."""
