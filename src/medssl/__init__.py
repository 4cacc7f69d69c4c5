"""Self-supervised pretraining for medical image classification: the study as stages over files."""

import importlib.metadata

__version__ = importlib.metadata.version("medssl")
