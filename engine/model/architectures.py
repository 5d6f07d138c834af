"""What model types have in common. Needs no torch."""

# Every token sees every other one that is no padding, in every layer: one row of a mask does for all tokens of a text.
FULL_ATTENTION = ("bert", "roberta", "distilbert", "xlm-roberta", "camembert", "electra", "albert")
