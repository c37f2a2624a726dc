"""Weights of a trained model, wherever and however they are kept."""
