"""The demo: a broker, a hub and devices as real processes on one machine, growing one model."""
