"""Token ids of the o200k_harmony vocabulary: the only place in both packages where they are written down.

Plain constants. Imports nothing, so every module and the converter can use them.
"""

from __future__ import annotations

VOCAB_SIZE = 201_088  # rows of gpt-oss's embedding, ids that no token uses included
FIRST_SPECIAL = 199_998  # ids from here on are special tokens; ids below are text

# Tokens that delimit harmony's messages.
FORMAT_TOKENS = {
    "<|return|>": 200002,
    "<|constrain|>": 200003,
    "<|channel|>": 200005,
    "<|start|>": 200006,
    "<|end|>": 200007,
    "<|message|>": 200008,
    "<|call|>": 200012,
}
# Every special token that has a name of its own; the others are called <|reserved_ID|>.
SPECIAL_TOKENS = {
    "<|startoftext|>": 199998,
    "<|endoftext|>": 199999,
    **FORMAT_TOKENS,
    "<|endofprompt|>": 200018,
}

STARTOFTEXT = SPECIAL_TOKENS["<|startoftext|>"]
ENDOFTEXT = SPECIAL_TOKENS["<|endoftext|>"]
RETURN = SPECIAL_TOKENS["<|return|>"]
CONSTRAIN = SPECIAL_TOKENS["<|constrain|>"]
CHANNEL = SPECIAL_TOKENS["<|channel|>"]
START = SPECIAL_TOKENS["<|start|>"]
END = SPECIAL_TOKENS["<|end|>"]
MESSAGE = SPECIAL_TOKENS["<|message|>"]
CALL = SPECIAL_TOKENS["<|call|>"]

STOP_TOKENS = (RETURN, CALL, ENDOFTEXT)  # end an assistant's turn
