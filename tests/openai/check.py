"""Checks with the OpenAI client for Python. Needs BASE_URL, MODEL and SERVER_LOG; prints a line for each check."""

import os
import sys
import time

import openai

MODEL = os.environ["MODEL"]
PROMPT = [{"role": "user", "content": "Tell me something about the sea."}]
client = openai.OpenAI(base_url=os.environ["BASE_URL"], api_key="none", max_retries=0, timeout=120)


def lists_the_model():
    ids = [model.id for model in client.models.list()]
    assert MODEL in ids, ids


def chats():
    answer = client.chat.completions.create(model=MODEL, messages=PROMPT, max_tokens=12, extra_body={"ignore_eos": True})
    assert answer.choices[0].message.content, answer
    assert answer.choices[0].finish_reason == "length", answer
    assert answer.usage.completion_tokens == 12, answer


def completes():
    answer = client.completions.create(model=MODEL, prompt="A river is", max_tokens=12)
    assert answer.choices[0].text.strip(), answer


def streams_a_chat():
    stream = client.chat.completions.create(
        model=MODEL, messages=PROMPT, max_tokens=12, stream=True, extra_body={"ignore_eos": True}
    )
    choices = [chunk.choices[0] for chunk in stream if chunk.choices]
    pieces = [choice.delta.content for choice in choices if choice.delta.content]
    assert len(pieces) > 3, choices
    assert choices[-1].finish_reason == "length", choices


def streams_a_completion():
    stream = client.completions.create(model=MODEL, prompt="A river is", max_tokens=12, stream=True)
    pieces = [chunk.choices[0].text for chunk in stream if chunk.choices]
    assert len(pieces) > 3 and "".join(pieces).strip(), pieces


def cancelling_frees_the_slot():
    before = cancelled()
    stream = client.chat.completions.create(
        model=MODEL, messages=PROMPT, max_tokens=3500, stream=True, extra_body={"ignore_eos": True}
    )
    for _, _ in zip(range(3), stream):
        pass
    stream.close()
    deadline = time.monotonic() + 30
    while cancelled() == before:
        assert time.monotonic() < deadline, "llama-server did not end the cancelled request within 30 s"
        time.sleep(0.05)
    chats()


def cancelled():
    """How many requests llama-server ended because their caller was gone; one that ran to its end is not among them."""
    with open(os.environ["SERVER_LOG"], encoding="utf-8", errors="replace") as log:
        return sum("cancel task" in line for line in log)


def unknown_model_is_a_not_found_error():
    try:
        client.chat.completions.create(model="no-such-model", messages=PROMPT)
    except openai.NotFoundError as error:
        assert error.status_code == 404, error
        assert error.code == "model_not_found", error.body
        assert error.param == "model", error.body
        assert "no-such-model" in error.message, error.message
    else:
        raise AssertionError("no error")


CHECKS = [
    lists_the_model,
    chats,
    completes,
    streams_a_chat,
    streams_a_completion,
    cancelling_frees_the_slot,
    unknown_model_is_a_not_found_error,
]
failed = 0
for check in CHECKS:
    name = check.__name__.replace("_", " ")
    try:
        check()
        print(f"ok   python: {name}", flush=True)
    except Exception as error:
        failed += 1
        print(f"FAIL python: {name}: {type(error).__name__}: {str(error)[:400]}".replace("\n", " "), flush=True)
sys.exit(failed != 0)
