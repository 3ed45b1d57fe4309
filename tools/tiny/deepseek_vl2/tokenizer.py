"""Byte-level BPE of the DeepSeek family, learnt from the phrases of language.py."""

import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

import language

BASE_VOCAB = 768  # with the first three special tokens; the others follow
BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
SPECIAL = ["<image>", "<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>", "<|grounding|>", "<|User|>", "<|Assistant|>"]
SPLITS = [r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+"]


def build():
    tokenizer = Tokenizer(models.BPE(fuse_unk=False, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(split), behavior="isolated", invert=False) for split in SPLITS]
        + [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel(add_prefix_space=True, trim_offsets=True, use_regex=True)
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=True, trim_offsets=False, use_regex=True)
    trainer = trainers.BpeTrainer(
        vocab_size=BASE_VOCAB,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[AddedToken(t, special=True, normalized=False) for t in (BOS, EOS, PAD)],
        show_progress=False,
    )
    tokenizer.train_from_iterator(language.corpus(grounding=True), trainer)
    tokenizer.add_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    return tokenizer


def write(folder: Path, tokenizer_file=None):
    tokenizer = Tokenizer.from_file(str(tokenizer_file)) if tokenizer_file else build()
    tokenizer.save(str(folder / "tokenizer.json"))
    entry = lambda t: {"content": t, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    added = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    named = {"bos_token": entry(BOS), "eos_token": entry(EOS), "pad_token": entry(PAD)}
    config = {
        "add_bos_token": True,
        "add_eos_token": False,
        "added_tokens_decoder": {str(t["id"]): entry(t["content"]) | {"special": t["special"]} for t in added},
        "additional_special_tokens": SPECIAL,
        "clean_up_tokenization_spaces": False,
        "legacy": True,
        "model_max_length": 4096,
        "sp_model_kwargs": {},
        "tokenizer_class": "LlamaTokenizerFast",
        "unk_token": None,
        "use_default_system_prompt": False,
    } | named
    for name, value in (
        ("tokenizer_config.json", config),
        ("special_tokens_map.json", {"additional_special_tokens": [entry(t) for t in SPECIAL]} | named),
    ):
        (folder / name).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
    return tokenizer
