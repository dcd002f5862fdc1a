"""ask.py GATEWAY MODEL chat|completion TOKENS PROMPT: streams one answer and prints it, indented, as it arrives."""

import json
import sys
import time
import urllib.error
import urllib.request

INDENT = "      "
# The small model is not tuned for conversations: it answers well when it has seen one, and does not end its turn itself.
EXAMPLE = [
    {"role": "user", "content": "Tell me something about the sun."},
    {"role": "assistant", "content": "The sun is the star at the centre of our solar system. It gives us light and warmth."},
]
STOP = ["<|im_end|>", "<|im_start|>"]


def main(gateway, model, kind, tokens, prompt):
    chat = kind == "chat"
    body = {"model": model, "stream": True, "max_tokens": int(tokens), "temperature": 0}
    if chat:
        body.update(messages=[*EXAMPLE, {"role": "user", "content": prompt}], stop=STOP)
    else:
        body.update(prompt=prompt)
    path = "/v1/chat/completions" if chat else "/v1/completions"
    request = urllib.request.Request(gateway + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    began, first, text, count = time.monotonic(), None, "", 0
    print(f"{INDENT}> {prompt}\n{INDENT}", end="", flush=True)
    try:
        with opener.open(request, timeout=120) as answer:
            for piece in pieces(answer, chat):
                count += bool(piece)
                piece = piece if text else piece.lstrip()
                first = first or time.monotonic()
                text += piece
                print(piece.replace("\n", "\n" + INDENT), end="", flush=True)
    except urllib.error.HTTPError as error:
        fail(f"{gateway}{path} answered {error.code}: {error.read(2000).decode(errors='replace')}")
    except (OSError, ValueError) as error:
        fail(f"{gateway}{path} broke off: {error}")
    if not text.strip():
        fail(f"{gateway}{path} answered without text")
    now = time.monotonic()
    rate = f", {(count - 1) / (now - first):.1f} tokens/s after it" if count > 1 and now > first else ""
    print(f"\n{INDENT}({first - began:.2f} s to the first word, {now - began:.2f} s in all{rate})", flush=True)


def pieces(answer, chat):
    """The text of each server-sent event, until the one that says it is done."""
    for line in answer:
        if not line.startswith(b"data: "):
            continue
        if line[6:].strip() == b"[DONE]":
            return
        event = json.loads(line[6:])
        if "error" in event:
            raise ValueError(event["error"])
        for choice in event["choices"]:
            yield (choice["delta"].get("content") if chat else choice["text"]) or ""
    raise ValueError("the stream ended without [DONE]")


def fail(what):
    print(flush=True)
    sys.exit(f"ask.py: error: {what}")


if len(sys.argv) != 6:
    sys.exit(__doc__)
main(*sys.argv[1:])
