"""Compares an encoder with Hugging Face tokenizers on the full vocabularies.

The encoder is a command that reads one text a line from standard input, as hexadecimal digits, and
writes the ids of each on a line. The texts are drawn lines, runs of random tokens of the vocabulary,
and passages of any files named. Prints the first differences and the number of texts compared.
"""

import argparse
import random
import subprocess
import sys

import tokenizer_fixtures
import tokenizer_lines


def token_runs(tokenizer, count):
    """Texts made of random tokens, so that every part of the vocabulary is met."""
    chooser = random.Random(7)
    size = tokenizer.get_vocab_size()
    for _ in range(count):
        ids = [chooser.randrange(size) for _ in range(chooser.randint(1, 30))]
        yield tokenizer.decode(ids, skip_special_tokens=False).encode()


def passages(paths):
    """Pieces of files, of every length and cut anywhere."""
    chooser = random.Random(11)
    for path in paths:
        with open(path, "rb") as file:
            content = file.read(1 << 20)
        at = 0
        while at < len(content):
            length = chooser.choice([17, 80, 400, 3000])
            yield content[at : at + length]
            at += length


def run_encoder(command, texts):
    sent = "\n".join(text.hex() for text in texts) + "\n"
    done = subprocess.run(command, shell=True, input=sent, capture_output=True, text=True, check=True)
    return [[int(word) for word in line.split()] for line in done.stdout.split("\n")[: len(texts)]]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kind", choices=["qwen2", "smollm2"], required=True)
    parser.add_argument("--source", required=True, help="folder of Qwen2 or GGUF file of SmolLM2")
    parser.add_argument("--encoder", required=True, help="command that encodes hexadecimal lines")
    parser.add_argument("--lines", type=int, default=100000)
    parser.add_argument("--files", nargs="*", default=[], help="texts to compare on")
    parser.add_argument("--fragments", default="tests/fixtures/text/fragments.txt")
    arguments = parser.parse_args()

    read = {"qwen2": tokenizer_fixtures.read_qwen2, "smollm2": tokenizer_fixtures.read_smollm2}
    vocabulary, merges, added = read[arguments.kind](arguments.source)[:3]
    tokenizer = tokenizer_fixtures.assemble(arguments.kind, vocabulary, merges, added)
    source = tokenizer_lines.LineSource(tokenizer_lines.read_fragments(arguments.fragments))
    texts = [source.line(i) for i in range(arguments.lines)]
    texts += token_runs(tokenizer, arguments.lines // 2)
    texts += passages(arguments.files)
    texts = [text for text in texts if text]

    actual = run_encoder(arguments.encoder, texts)
    different = 0
    for text, ids in zip(texts, actual):
        expected = tokenizer.encode(text.decode("utf-8", "replace"), add_special_tokens=False).ids
        if ids != expected:
            different += 1
            if different <= 5:
                print(f"{text!r}\n  expected {expected}\n  got      {ids}")
    total = sum(map(len, texts))
    print(f"{arguments.kind}: {len(texts)} texts, {total} bytes: {different} differ")
    sys.exit(1 if different else 0)


if __name__ == "__main__":
    main()
