"""`python -m mlm.config`: prints the table of settings."""

from mlm.config.table import markdown

if __name__ == "__main__":
    print(markdown(), end="")
