"""`python -m llama2q`."""

from llama2q.cli.main import main

if __name__ == "__main__":
    main()
