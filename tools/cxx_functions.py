"""Finds functions in C++ text and measures them: enough of a parser for clang-format'ed code."""

import re
from dataclasses import dataclass

import cxx_source


@dataclass
class Function:
    name: str
    line: int  # of the first line of the signature
    lines: int  # signature and body
    nesting: int  # control statements inside each other; else-if chains count once


_TOKEN = re.compile(r'[A-Za-z_]\w*|::|->|&&|\|\||[{}()\[\];:,<>=~]|"[^"]*"|[^\s\w]|\d[\w.\']*')
_TYPE = re.compile(r"^(template\b.*?>\s*)?(typedef\s+)?(class|struct|union|enum)\b")
_NAME = re.compile(r"((?:~\s*)?[A-Za-z_]\w*|operator\s*[^\s(]+(?:\s*\(\s*\))?)\s*$")


def _without_preprocessor(text):
    return re.sub(
        r"^[ \t]*#(?:[^\n]*\\\n)*[^\n]*", lambda m: "\n" * m.group(0).count("\n"), text, flags=re.M
    )


class _Parser:
    def __init__(self, text):
        self.tokens = []
        line = 1
        position = 0
        for match in _TOKEN.finditer(text):
            line += text.count("\n", position, match.start())
            position = match.start()
            self.tokens.append((match.group(0), line))
        self.functions = []

    def token(self, i):
        return self.tokens[i][0] if i < len(self.tokens) else ""

    def matching(self, i):
        """Index of the bracket that closes the one at i."""
        depth = 0
        for j in range(i, len(self.tokens)):
            if self.token(j) in ("(", "[", "{"):
                depth += 1
            elif self.token(j) in (")", "]", "}"):
                depth -= 1
            if depth == 0:
                return j
        return len(self.tokens)

    def declarations(self, i, end):
        """Walks namespace and class scope, collecting functions."""
        start = i
        while i < end:
            token = self.token(i)
            if token == "(":
                i = self.matching(i)
            elif token == ";":
                start = i + 1
            elif token == ":" and self.token(i - 1) in ("public", "private", "protected"):
                start = i + 1
            elif token == "{":
                close = self.matching(i)
                if self.brace(start, i, close):
                    start = close + 1
                i = close
            i += 1

    def brace(self, start, i, close):
        """Handles the block [i, close] whose head is [start, i); False if the head goes on."""
        words = [self.token(j) for j in range(start, i)]
        head = " ".join(words)
        if words and words[0] in ("namespace", "extern", "inline") and "(" not in words:
            self.declarations(i + 1, close)
        elif _TYPE.match(head) and words[-1] not in (")", "const", "noexcept", "override"):
            self.declarations(i + 1, close)
        elif "(" in words and "=" not in self.outside_parentheses(words):
            if self.token(close + 1) in (",", "{"):
                return False  # a member initializer
            body = _Nesting(self, close)
            body.block(i + 1, close, 0)
            first, last = self.tokens[start][1], self.tokens[min(close, len(self.tokens) - 1)][1]
            name = self.function_name(words)
            self.functions.append(Function(name, first, last - first + 1, body.deepest))
        else:
            return self.token(close + 1) not in (",", "{")
        return True

    @staticmethod
    def outside_parentheses(words):
        """Words of a head, without template parameters, operator names and what is in ()."""
        depth, kept = 0, []
        for k, word in enumerate(words):
            depth += word == "("
            if depth == 0 and (k == 0 or words[k - 1] != "operator"):
                kept.append(word)
            depth -= word == ")"
        text = re.sub(r"template\s*<.*?>\s", "", " ".join(kept))
        return re.sub(r"operator[^a-z]*", "", text).split()

    @staticmethod
    def function_name(words):
        if words[0] in ("TEST", "TEST_F", "TEST_P", "TYPED_TEST"):
            return "".join(words[2 : words.index(")")]).replace(",", ".")
        match = _NAME.search(" ".join(words[: words.index("(")]))
        return re.sub(r"\s", "", match.group(1)) if match else "?"


class _Nesting:
    """Walks the statements of one function body."""

    def __init__(self, parser, end):
        self.parser = parser
        self.end = end
        self.deepest = 0

    def block(self, i, end, depth):
        while i < end:
            i = self.statement(i, depth)
        return i

    def nested(self, i, depth):
        self.deepest = max(self.deepest, depth + 1)
        return self.statement(i, depth + 1)

    def statement(self, i, depth):
        """Returns the index behind the statement that starts at i."""
        p = self.parser
        token = p.token(i)
        if token == "{":
            return self.block(i + 1, p.matching(i), depth) + 1
        if token in ("if", "for", "while", "switch", "catch"):
            return self.control(i, depth)
        if token in ("do", "try"):
            return self.nested(i + 1, depth)
        if token in ("case", "default"):
            while i < self.end and p.token(i) != ":":
                i += 1
            return i + 1
        if token == "}":
            return i + 1
        return self.expression(i, depth)

    def control(self, i, depth):
        p = self.parser
        is_if = p.token(i) == "if"
        while i < self.end and p.token(i) != "(":
            i += 1
        i = self.attributes(p.matching(i) + 1)
        i = self.nested(i, depth)
        while is_if and p.token(i) == "else":
            i = self.attributes(i + 1)
            if p.token(i) == "if":
                return self.control(i, depth)
            i = self.nested(i, depth)
        return i

    def attributes(self, i):
        p = self.parser
        while p.token(i) == "[" and p.token(i + 1) == "[":
            i = p.matching(i) + 1
        return i

    def expression(self, i, depth):
        p = self.parser
        while i < self.end and p.token(i) not in (";", "}"):
            if p.token(i) in ("(", "["):
                self.expressions_inside(i, depth)
                i = p.matching(i)
            elif p.token(i) == "{":
                self.block(i + 1, p.matching(i), depth)
                i = p.matching(i)
                if p.token(i + 1) not in (";", ",", ")", "(", ".", "{"):
                    return i + 1
            i += 1
        return i + 1

    def expressions_inside(self, i, depth):
        """Lambda bodies among the arguments of a call."""
        p = self.parser
        end = p.matching(i)
        j = i + 1
        while j < end:
            if p.token(j) == "{":
                self.block(j + 1, p.matching(j), depth)
                j = p.matching(j)
            j += 1


def find_functions(text):
    parser = _Parser(_without_preprocessor(cxx_source.strip(text)))
    parser.declarations(0, len(parser.tokens))
    return parser.functions
