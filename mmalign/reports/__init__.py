"""Plots, self-contained HTML pages and model cards."""
