"""The published XLM-RoBERTa-XL family: its arguments, outputs and losses, on our layers."""
