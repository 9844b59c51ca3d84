"""Tokenizer, rendering of comparisons as prefix trees, and tokenized datasets with their cache."""
