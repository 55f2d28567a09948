"""The rules of a community."""
