"""Trains and evaluates robust classifiers: `python main.py --help`. The same as the command infofeat-jax."""

from infofeat_jax import command

if __name__ == "__main__":
    command.main()
