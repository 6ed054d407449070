"""``python -m autopar``, where no script of that name is on the path."""

import sys

from autopar.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
