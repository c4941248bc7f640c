"""Loading models and tokenizers, and what is new in them."""
