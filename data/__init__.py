"""TFDS builders of the data sets, and their preparation: `python -m data.prepare`. See data/README.md."""
