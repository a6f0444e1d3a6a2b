"""`python -m surogate`; also how Lightning starts the other ranks of a run that was started so."""

import sys

from surogate.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
