"""DSpark: train, judge and serve draft models for large language models."""

__version__ = "0.1.0"
