"""What comes from outside, thrown at every decoder: the targets, their seeds, and what runs them (docs/fuzzing.md)."""
