"""Pairs on the command line."""
