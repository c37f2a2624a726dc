"""XLM-R's numbering of ids, which tokenizer, shards and masks agree on.

`<s>` 0, `<pad>` 1, `</s>` 2, `<unk>` 3, a sentencepiece id + 1 for every piece (so that piece 3,
sentencepiece's first that is not a control, is 4), and `<mask>` last.
"""

BOS, PAD, EOS, UNK = 0, 1, 2, 3
FIRST_PIECE = 4
SHIFT = 1  # from a sentencepiece id to ours
EXTRA = 2  # ids that are ours and not sentencepiece's: <pad> and <mask>
SPACE = "▁"  # what a space is in a piece
MODEL_FILE = "sentencepiece.bpe.model"  # the published name, though the model is a unigram one
JSON_FILE = "tokenizer.json"  # the same model, as the tokenizers library has it
