"""The hub's side of a round: admission, rounds, merging, the gate, publishing."""
