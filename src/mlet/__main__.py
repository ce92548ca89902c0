"""``python -m mlet``."""

from mlet.cli import main

if __name__ == "__main__":
    main()
