"""Runs that are killed, starved and interrupted: the same command goes on, and nothing is lost."""
