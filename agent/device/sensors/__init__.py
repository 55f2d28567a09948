"""Sensors: what a machine says about itself and its owner, read cheaply and often."""
