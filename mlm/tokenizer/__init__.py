"""The tokenizer of the family, with the interface of transformers' tokenizers."""
