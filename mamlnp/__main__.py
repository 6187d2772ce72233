"""``python -m mamlnp`` is ``mamlnp``."""

import sys


def main() -> None:
    """The command; Ctrl-C while all that it needs is imported is no mistake of anybody's."""
    try:
        from .cli import main as command
    except KeyboardInterrupt:
        print("mamlnp: interrupted.", file=sys.stderr)
        sys.exit(130)
    command()


if __name__ == "__main__":
    main()
