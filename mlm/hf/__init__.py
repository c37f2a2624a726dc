"""Hugging Face folders: what transformers loads of a model that was trained here."""
