"""A tokenizer of one character a token, for models that are made from scratch."""

from __future__ import annotations

from transformers import PreTrainedTokenizerFast

PAD, UNKNOWN, END = "<pad>", "<unk>", "<end>"
ROLES = ("system", "user", "assistant", "tool")

# One token opens a turn and one closes the assistant's: a question of n characters is a prompt of n + 2 tokens.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<' + message['role'] + '>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ '<end>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)


def character_tokenizer(alphabet: str, context_length: int) -> PreTrainedTokenizerFast:
    """Special tokens first, then each character of `alphabet` in its order; others become `<unk>`.

    Raises ValueError for an empty alphabet or a repeated character.
    """
    from tokenizers import Tokenizer, decoders, models

    if not alphabet:
        raise ValueError("the alphabet is empty")
    repeated = sorted({character for character in alphabet if alphabet.count(character) > 1})
    if repeated:
        raise ValueError(f"the alphabet repeats {''.join(repeated)!r}")
    special = [PAD, UNKNOWN, END, *(f"<{role}>" for role in ROLES)]
    vocabulary = {token: index for index, token in enumerate([*special, *alphabet])}
    # Byte-pair encoding without merges splits a text into its characters.
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=UNKNOWN))
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        additional_special_tokens=[f"<{role}>" for role in ROLES],
        model_max_length=context_length,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast
