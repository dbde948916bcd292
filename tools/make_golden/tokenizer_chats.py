"""Writes tests/fixtures/text/chats.json: conversations rendered by the models' own Jinja templates.

The environment is the one transformers uses: blocks are trimmed, and line breaks inside expressions
are kept.
"""

import argparse
import json
import os

from jinja2.sandbox import ImmutableSandboxedEnvironment

CONVERSATIONS = [
    [("user", "Hello!")],
    [("system", "Answer in one word."), ("user", "Is water wet?")],
    [("system", ""), ("user", "")],
    [("user", "Count to three."), ("assistant", "1, 2, 3."), ("user", "Further.\n")],
    [("system", "You are terse."), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")],
    [("assistant", "May I help?"), ("user", "\n  Yes,\tplease.  ")],
    [("user", "x"), ("system", "Now speak French."), ("user", "y")],
    [("user", "'quotes' \"and\" {{ braces }} {% raw %}"), ("assistant", "你好 😀")],
    [("user", "Weather?"), ("assistant", "Looking."), ("tool", "{\"celsius\": 21}"), ("assistant", "21")],
    [("user", "Both?"), ("assistant", "Yes."), ("tool", "one"), ("tool", "two"), ("user", "Thanks.")],
    [("tool", "alone")],
]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", required=True, help="tests/fixtures/text")
    out = parser.parse_args().out
    with open(os.path.join(out, "qwen2", "tokenizer_config.json"), encoding="utf-8") as file:
        templates = {"qwen2": json.load(file)["chat_template"]}
    with open(os.path.join(out, "smollm2", "chat_template.jinja"), encoding="utf-8") as file:
        templates["smollm2"] = file.read()

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    cases = []
    for name, source in templates.items():
        template = environment.from_string(source)
        for conversation in CONVERSATIONS:
            messages = [{"role": role, "content": content} for role, content in conversation]
            for prompt in (False, True):
                text = template.render(messages=messages, add_generation_prompt=prompt)
                cases.append(
                    {"template": name, "messages": messages, "prompt": prompt, "text": text}
                )
    with open(os.path.join(out, "chats.json"), "w", encoding="utf-8") as file:
        json.dump(cases, file, ensure_ascii=False, indent=1)
        file.write("\n")


if __name__ == "__main__":
    main()
