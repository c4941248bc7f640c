"""The command: ``python -m llmft`` is the same as ``llmft``."""

from llmft.cli import main

if __name__ == "__main__":
    main()
