"""python -m infofeat_jax, and infofeat-jax: see `command`."""

import sys

from infofeat_jax import installation


def main() -> None:
    """The command; where the extra `train` is not installed, one line that says so."""
    try:
        from infofeat_jax import command
    except ModuleNotFoundError as error:
        print(
            f"error: the command needs more than the library ({error}): {installation.command('train')}",
            file=sys.stderr,
        )
        sys.exit(2)
    command.main()


if __name__ == "__main__":
    main()
