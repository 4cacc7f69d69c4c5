"""Checks of what a run left, recounted from its files alone; no stage uses them."""
