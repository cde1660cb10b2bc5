"""`python -m shufflestore`."""

import sys

from shufflestore.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
