"""Converters and builders of data sets, each a small program: ``python data_tools/NAME.py --help``, or ``mmalign data``."""
