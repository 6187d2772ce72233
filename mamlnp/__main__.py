"""``python -m mamlnp`` is ``mamlnp``."""

from .cli import main

if __name__ == "__main__":
    main()
