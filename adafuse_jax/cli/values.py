"""Kinds of values on the command line."""

import argparse


def positive(text: str) -> int:
    """An integer of at least 1."""
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"expected an integer of at least 1, found {text}")
    return int(text)
