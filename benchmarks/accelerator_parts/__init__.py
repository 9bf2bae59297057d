"""The parts of accelerator.py: what it measures, plans, trains and evaluates, and the page that it leaves."""
