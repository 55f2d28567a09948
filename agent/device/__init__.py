"""What this machine is, and what it may spend. Only here: psutil."""
