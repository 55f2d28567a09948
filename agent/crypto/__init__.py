"""Keys, envelopes, sealing. Only here: cryptography."""
