"""`python -m softmax_xp` is the command `softmax-xp`."""

from softmax_xp.cli import main

if __name__ == "__main__":
    main()
