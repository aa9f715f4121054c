"""``python -m contrafact``: the command line."""

from contrafact._cli import main

if __name__ == "__main__":
    main()
