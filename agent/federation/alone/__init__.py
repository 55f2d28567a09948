"""Training on this machine alone: nothing is sent, and what comes of it is the owner's."""
