"""The owner's text: sources, consent, windows of tokens."""
