"""`python -m agent.cli` is `bramble`."""

from agent.cli import main

if __name__ == "__main__":
    main()
