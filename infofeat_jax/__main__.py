"""python -m infofeat_jax: see `command`."""

from infofeat_jax import command

if __name__ == "__main__":
    command.main()
