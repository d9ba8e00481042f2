"""`python -m ilrec` is the command `ilrec`."""

from ilrec.cli import main

if __name__ == "__main__":
    main()
