"""`python -m softmax_xp` is the command `softmax-xp`."""

import sys

from softmax_xp.cli.signals import interruption


def main() -> None:
    """Run the command, with signals handled while it is loaded and until the interpreter ends."""
    interruption.handle_until_exit()
    try:
        from softmax_xp.cli.app import main as command

        command()
    except KeyboardInterrupt:
        sys.exit(interruption.status)
    finally:
        interruption.end()


if __name__ == "__main__":
    main()
