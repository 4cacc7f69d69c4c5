"""Training processes: pretraining, fine-tuning, prediction."""
