"""What the checks of this folder share: finding C++ sources and reading them without comments."""

import os
import re

FOLDERS = ("src", "tests", "bench", "examples")
EXTENSIONS = (".h", ".cpp", ".cu", ".cuh")


def find_sources(root):
    """Paths of all C++ files below root, relative to it, with forward slashes, sorted."""
    found = []
    for folder in FOLDERS:
        for directory, _, names in os.walk(os.path.join(root, folder)):
            for name in names:
                if name.endswith(EXTENSIONS):
                    path = os.path.relpath(os.path.join(directory, name), root)
                    found.append(path.replace(os.sep, "/"))
    return sorted(found)


def read(root, path):
    with open(os.path.join(root, path), encoding="utf-8") as file:
        return file.read()


# Raw strings first: they may hold quotes and comment marks. A quote after a digit or letter is a
# digit separator, not the start of a character.
_NOT_CODE = re.compile(
    r'R"(?P<fence>[^()\s\\]{0,16})\(.*?\)(?P=fence)"'
    r'|"(?:\\.|[^"\\\n])*"'
    r"|(?<![0-9A-Za-z_])'(?:\\.|[^'\\\n])*'"
    r"|//[^\n]*"
    r"|/\*.*?\*/",
    re.DOTALL,
)


def strip(text, keep_strings=False):
    """Blanks comments, and the content of strings; line numbers stay as they are."""

    def blank(match):
        token = match.group(0)
        lines = "\n" * token.count("\n")
        if token.startswith(("//", "/*")):
            return " " + lines
        return token if keep_strings else '""' + lines

    return _NOT_CODE.sub(blank, text)
