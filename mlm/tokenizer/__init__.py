"""The tokenizer of the family, with the interface that users of the reference know."""
