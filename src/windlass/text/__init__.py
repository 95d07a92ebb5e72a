"""Between text and token ids: tokenizer, templates, detokenizer, stop strings."""
