"""The stages in pipeline order: artifacts in, artifacts out."""
