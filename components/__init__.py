"""KFP components, one a stage: thin, so that a stage runs the same from a pipeline, a command or a test."""
