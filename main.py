"""Trains and evaluates robust classifiers: `python main.py --help`. The same as the command infofeat-jax."""

from infofeat_jax.__main__ import main

if __name__ == "__main__":
    main()
