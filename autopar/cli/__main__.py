"""``python -m autopar.cli``: the ``autopar`` command where the script is not on the path."""

from autopar.cli.main import run

if __name__ == "__main__":
    run()
