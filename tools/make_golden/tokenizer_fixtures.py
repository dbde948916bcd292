"""Writes tests/fixtures/text: trimmed tokenizers and the hashes of the expected tokens of each line.

The expected tokens come from Hugging Face tokenizers with the full vocabularies of Qwen2 and SmolLM2.
The vocabularies in the repository are trimmed: they hold the tokens of single bytes, the added tokens,
and the merges that were picked while the lines were encoded, with the original ids and in the original
order. That cannot change a result. At each step byte-pair encoding picks, of the merges possible in
the word, the one with the lowest rank. For every step on these lines that merge was kept, and removing
others from a set does not change which member is its minimum. So by induction every step is the same.
The script checks it, too: it encodes all lines with the trimmed tokenizers before it writes them.
"""

import argparse
import json
import os
import re
import shutil

import gguf
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

import tokenizer_lines

QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def byte_level(use_regex):
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


def assemble(kind, vocabulary, merges, added):
    """A tokenizer of one of the two families."""
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    if kind == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
        split = pre_tokenizers.Split(Regex(QWEN2_SPLIT), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level(False)])
    else:
        digits = pre_tokenizers.Digits(individual_digits=True)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level(True)])
    tokenizer.decoder = decoders.ByteLevel()
    for content, special in added:
        token = AddedToken(content, normalized=False, special=special)
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)([token])
    return tokenizer


def read_qwen2(folder):
    with open(os.path.join(folder, "vocab.json"), encoding="utf-8") as file:
        vocabulary = json.load(file)
    with open(os.path.join(folder, "merges.txt"), encoding="utf-8", newline="\n") as file:
        lines = file.read().split("\n")
    merges = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    with open(os.path.join(folder, "tokenizer_config.json"), encoding="utf-8") as file:
        decoder = json.load(file)["added_tokens_decoder"]
    entries = sorted(decoder.items(), key=lambda item: int(item[0]))
    added = [(entry["content"], entry["special"]) for _, entry in entries]
    return vocabulary, merges, added


def read_smollm2(path):
    fields = gguf.GGUFReader(path).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    types = fields["tokenizer.ggml.token_type"].contents()
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"].contents()]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    added = [(token, True) for token, kind in zip(tokens, types) if kind == 3]
    return vocabulary, merges, added, fields["tokenizer.chat_template"].contents()


class MergeRecorder:
    """Plain byte-pair encoding that remembers which merges it picked."""

    def __init__(self, merges):
        self.ranks = {pair: rank for rank, pair in enumerate(merges)}
        self.picked = set()
        self.words = {}

    def encode(self, word):
        if word not in self.words:
            self.words[word] = self.merge(list(word))
        return self.words[word]

    def merge(self, parts):
        while len(parts) > 1:
            pairs = [self.ranks.get(pair, len(self.ranks)) for pair in zip(parts, parts[1:])]
            rank = min(pairs)
            if rank == len(self.ranks):
                break
            at = pairs.index(rank)
            self.picked.add(rank)
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        return parts


def record(tokenizer, vocabulary, added, recorder, text):
    """The ids of `text` by our own merging, from the reference's pieces."""
    ids = []
    contents = sorted((content for content, _ in added), key=len, reverse=True)
    splitter = re.compile("(" + "|".join(map(re.escape, contents)) + ")")
    for part in splitter.split(text):
        if part in contents:
            ids.append(tokenizer.token_to_id(part))
            continue
        if tokenizer.normalizer is not None:
            part = tokenizer.normalizer.normalize_str(part)
        for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(part):
            known = "".join(c for c in piece if c in vocabulary)  # a byte may have no token
            ids += [vocabulary[token] for token in recorder.encode(known)]
    return ids


def trim(kind, vocabulary, merges, added, texts):
    """Expected ids of every text, and the vocabulary and merges they need."""
    full = assemble(kind, vocabulary, merges, added)
    recorder = MergeRecorder(merges)
    expected = []
    for text in texts:
        ids = full.encode(text, add_special_tokens=False).ids
        assert ids == record(full, vocabulary, added, recorder, text), repr(text)
        expected.append(ids)
    kept = [merges[rank] for rank in sorted(recorder.picked)]
    names = {token for token in vocabulary if len(token) == 1}
    for left, right in kept:
        names |= {left, right, left + right}
    small = {token: vocabulary[token] for token in sorted(names, key=vocabulary.get)}
    return expected, small, kept


def check_trimmed(kind, small, kept, added, full_vocabulary, texts, expected):
    # The library numbers added tokens after the vocabulary, so they are compared by content.
    trimmed = assemble(kind, small, kept, added)
    names = {index: token for token, index in full_vocabulary.items()}
    for text, ids in zip(texts, expected):
        tokens = trimmed.encode(text, add_special_tokens=False).tokens
        assert tokens == [names[index] for index in ids], repr(text)


def write_hashes(path, expected):
    with open(path, "wb") as file:
        for ids in expected:
            file.write(tokenizer_lines.hash_ids(ids).to_bytes(4, "little"))


def write_json(path, value):
    with open(path, "w", encoding="utf-8") as file:
        json.dump(value, file, ensure_ascii=False, separators=(",", ":"))
        file.write("\n")


def write_qwen2(source, out, texts):
    vocabulary, merges, added = read_qwen2(source)
    expected, small, kept = trim("qwen2", vocabulary, merges, added, texts)
    numbered = assemble("qwen2", vocabulary, merges, added)
    names = dict(vocabulary, **{content: numbered.token_to_id(content) for content, _ in added})
    check_trimmed("qwen2", small, kept, added, names, texts, expected)
    os.makedirs(out, exist_ok=True)
    write_json(os.path.join(out, "vocab.json"), small)
    with open(os.path.join(out, "merges.txt"), "w", encoding="utf-8") as file:
        file.write("#version: 0.2\n")
        file.writelines(f"{left} {right}\n" for left, right in kept)
    for name in ("tokenizer_config.json", "added_tokens.json", "generation_config.json"):
        shutil.copyfile(os.path.join(source, name), os.path.join(out, name))
    write_hashes(os.path.join(out, "line_hashes.bin"), expected)


def write_smollm2(source, out, texts):
    vocabulary, merges, added, chat_template = read_smollm2(source)
    expected, small, kept = trim("smollm2", vocabulary, merges, added, texts)
    small = dict({content: vocabulary[content] for content, _ in added}, **small)
    check_trimmed("smollm2", small, kept, added, vocabulary, texts, expected)
    os.makedirs(out, exist_ok=True)
    tokenizer = assemble("smollm2", small, kept, added)
    write_json(os.path.join(out, "tokenizer.json"), json.loads(tokenizer.to_str()))
    with open(os.path.join(out, "chat_template.jinja"), "w", encoding="utf-8") as file:
        file.write(chat_template)
    write_hashes(os.path.join(out, "line_hashes.bin"), expected)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--qwen2", required=True, help="folder with vocab.json and merges.txt")
    parser.add_argument("--smollm2", required=True, help="GGUF file of SmolLM2")
    parser.add_argument("--out", required=True, help="tests/fixtures/text")
    parser.add_argument("--lines", type=int, default=12000)
    arguments = parser.parse_args()
    sections = tokenizer_lines.read_fragments(os.path.join(arguments.out, "fragments.txt"))
    source = tokenizer_lines.LineSource(sections)
    texts = [source.line(i).decode("utf-8", errors="replace") for i in range(arguments.lines)]
    write_qwen2(arguments.qwen2, os.path.join(arguments.out, "qwen2"), texts)
    write_smollm2(arguments.smollm2, os.path.join(arguments.out, "smollm2"), texts)


if __name__ == "__main__":
    main()
