"""The lines of the tokenizer parity test, drawn by a counter-based generator.

src/text/parity_lines_test.h draws the same lines in C++, so the repository holds only a hash of the
expected tokens of each.
"""

MASK = (1 << 64) - 1


class SplitMix64:
    def __init__(self, seed):
        self.state = seed & MASK

    def next(self):
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return z ^ (z >> 31)

    def below(self, bound):
        return self.next() % bound


def unescape(text):
    simple = {"n": b"\n", "t": b"\t", "r": b"\r", "s": b" ", "\\": b"\\"}
    out = b""
    i = 0
    while i < len(text):
        if text[i] != "\\":
            out += text[i].encode()
            i += 1
        elif text[i + 1] == "x":
            out += bytes([int(text[i + 2 : i + 4], 16)])
            i += 4
        else:
            out += simple[text[i + 1]]
            i += 2
    return out


def read_fragments(path):
    sections = {}
    current = None
    with open(path, encoding="utf-8", newline="\n") as file:
        for line in file:
            line = line.rstrip("\n")
            if line.startswith("# ") or not line:
                continue
            if line[0] == "[" and line[-1] == "]":
                current = sections.setdefault(line[1:-1], [])
            else:
                current.append(unescape(line))
    return sections


# Blocks from which single characters are drawn: first code point and number of them.
BLOCKS = [
    (0x20, 95), (0xA0, 96), (0x100, 128), (0x300, 112), (0x370, 144), (0x400, 256), (0x590, 112),
    (0x600, 256), (0x900, 128), (0xE00, 128), (0x1100, 256), (0x2000, 112), (0x2190, 112),
    (0x3040, 192), (0x4E00, 512), (0xAC00, 512), (0xF900, 64), (0xFE00, 48), (0xFF00, 240),
    (0x1F600, 80), (0x1F900, 256), (0x20000, 64), (0xE0020, 96), (0x40000, 4),
]


class LineSource:
    def __init__(self, sections):
        self.sections = sections

    def pick(self, rng, section):
        fragments = self.sections[section]
        return fragments[rng.below(len(fragments))]

    def repeat(self, rng, section, most):
        count = 1 + rng.below(most)
        return b"".join(self.pick(rng, section) for _ in range(count))

    def digits(self, rng):
        return b"".join(b"%d" % rng.below(10) for _ in range(1 + rng.below(9)))

    def character_run(self, rng):
        characters = b"a0 =-\n.!x\t"
        at = rng.below(len(characters))
        return characters[at : at + 1] * (1 + rng.below(40))

    def random_characters(self, rng):
        out = b""
        for _ in range(1 + rng.below(3)):
            first, count = BLOCKS[rng.below(len(BLOCKS))]
            out += chr(first + rng.below(count)).encode()
        return out

    def random_bytes(self, rng):
        return b"".join(bytes([128 + rng.below(128)]) for _ in range(1 + rng.below(4)))

    def fragment(self, rng):
        kind = rng.below(24)
        if kind < 7:
            return self.pick(rng, "english")
        if kind < 10:
            return self.pick(rng, "chinese")
        if kind < 13:
            return self.pick(rng, "code")
        if kind == 13:
            return self.pick(rng, "emoji")
        if kind < 16:
            return self.pick(rng, "scripts")
        if kind == 16:
            return self.repeat(rng, "marks", 3)
        if kind < 19:
            return self.repeat(rng, "spaces", 5)
        if kind == 19:
            return self.digits(rng)
        if kind == 20:
            return self.character_run(rng)
        if kind == 21:
            return self.random_characters(rng)
        if kind == 22:
            return self.random_bytes(rng)
        return self.pick(rng, "special" if rng.below(2) else "controls")

    def line(self, index):
        """The bytes of line `index`; not always UTF-8."""
        rng = SplitMix64(0x5B1CE + index)
        out = b""
        for _ in range(1 + rng.below(10)):
            out += self.fragment(rng)
            if rng.below(2):
                out += b" "
        # Some lines end inside a character.
        return out[: rng.below(len(out))] if rng.below(8) == 0 else out


def hash_ids(ids):
    """FNV-1a over the little-endian bytes of the ids."""
    value = 0x811C9DC5
    for token in ids:
        for byte in int(token).to_bytes(4, "little"):
            value = ((value ^ byte) * 0x01000193) & 0xFFFFFFFF
    return value
