"""``python -m autopar``, where no script of that name is on the path."""

from autopar.cli.main import run

if __name__ == "__main__":
    run()
