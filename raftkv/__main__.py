"""``python -m raftkv``: the same as the command ``raftkv``."""

from raftkv.cli.main import main

if __name__ == "__main__":
    main()
