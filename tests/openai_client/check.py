"""What OpenAI's own client sees of memcube: chats with memory, embeddings, models, errors.

usage: check.py ADDRESS API_KEY
"""

import math
import sys
import traceback
import uuid

import openai

CHECKS = []


def check(function):
    CHECKS.append(function)
    return function


def messages(text, system="Answer briefly."):
    return [{"role": "system", "content": system}, {"role": "user", "content": text}]


def name():
    return f"ann-{uuid.uuid4()}"


def model_of(client, kind):
    [model] = [m for m in client.models.list() if m.model_extra["memcube"]["kind"] == kind]
    return model.id


@check
def models_are_listed(client):
    listed = client.models.list().data
    assert {m.model_extra["memcube"]["kind"] for m in listed} == {"language", "embedding"}, listed
    for model in listed:
        assert client.models.retrieve(model.id) == model


@check
def a_chat_is_answered_and_remembered(client):
    user, model = name(), model_of(client, "language")
    reply = client.chat.completions.create(
        model=model, user=user, max_tokens=24, messages=messages("My heron is called Amadeus.")
    )
    [choice] = reply.choices
    assert choice.message.role == "assistant" and choice.message.content
    assert choice.finish_reason in ("stop", "length")
    assert reply.model == model and reply.object == "chat.completion"
    usage = reply.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    memory = reply.model_extra["memcube"]
    assert memory["memories"] == [] and len(memory["remembered"]["ids"]) == 2, memory

    later = client.chat.completions.create(
        model=model, user=user, max_tokens=24, messages=messages("What is my heron called?")
    )
    used = [used["id"] for used in later.model_extra["memcube"]["memories"]]
    assert memory["remembered"]["ids"][0] in used, "what was said once is known afterwards"


@check
def a_stream_tells_text_memories_and_usage(client):
    user, model = name(), model_of(client, "language")
    stream = client.chat.completions.create(
        model=model,
        user=user,
        stream=True,
        stream_options={"include_usage": True},
        max_completion_tokens=24,
        temperature=0.7,
        seed=7,
        messages=messages("Tell me about herons."),
    )
    chunks = list(stream)
    first, last, usage = chunks[0], chunks[-2], chunks[-1]
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text and first.choices[0].delta.role == "assistant"
    assert first.model_extra["memcube"]["cube"] == user
    assert last.choices[0].finish_reason in ("stop", "length")
    assert last.model_extra["memcube"]["timings"]["ttft_ms"] > 0
    assert usage.choices == [] and usage.usage.completion_tokens > 0
    # The same seed says the same; nothing of this one is remembered.
    again = client.chat.completions.create(
        model=model,
        user=name(),
        max_tokens=24,
        temperature=0.7,
        seed=7,
        messages=messages("Tell me about herons."),
        extra_body={"memcube": {"remember": False}},
    )
    assert again.choices[0].message.content == text
    assert "remembered" not in again.model_extra["memcube"]


@check
def the_next_turn_uses_what_was_computed(client):
    user, model = name(), model_of(client, "language")
    said = messages("Tell me about herons.", system="Be kind and brief. " * 20)
    first = client.chat.completions.create(model=model, user=user, max_tokens=8, messages=said)
    said += [
        {"role": "assistant", "content": first.choices[0].message.content},
        {"role": "user", "content": "And about storks?"},
    ]
    second = client.chat.completions.create(model=model, user=user, max_tokens=8, messages=said)
    assert second.usage.prompt_tokens_details.cached_tokens > 50, second.usage
    memory = [first.model_extra["memcube"], second.model_extra["memcube"]]
    assert memory[0]["conversation"] == memory[1]["conversation"]


@check
def a_stream_that_is_closed_is_not_remembered(client):
    user, model = name(), model_of(client, "language")
    with client.chat.completions.create(
        model=model, user=user, stream=True, messages=messages("Tell me a long story.")
    ) as stream:
        for chunk in stream:
            if chunk.choices and chunk.choices[0].delta.content:
                break
    later = client.chat.completions.create(
        model=model, user=user, max_tokens=4, messages=messages("What did I ask for?")
    )
    assert later.model_extra["memcube"]["memories"] == [], "nothing was remembered"


@check
def errors_are_the_clients_own(client):
    model = model_of(client, "language")
    hello = messages("hello")
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    image = [{"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}]
    for kind, fragment, arguments in [
        (openai.BadRequestError, "send `user`", {"model": model, "messages": hello}),
        (openai.BadRequestError, "takes no tools",
         {"model": model, "user": "u", "messages": hello, "tools": [tool]}),
        (openai.BadRequestError, "image_url",
         {"model": model, "user": "u", "messages": [{"role": "user", "content": image}]}),
        (openai.BadRequestError, "`n`", {"model": model, "user": "u", "messages": hello, "n": 2}),
        (openai.NotFoundError, "there is no model `gpt-4o`",
         {"model": "gpt-4o", "user": "u", "messages": hello}),
        (openai.NotFoundError, "POST /v1/cubes",
         {"model": model, "messages": hello, "extra_body": {"cube": name()}}),
    ]:
        try:
            client.chat.completions.create(**arguments)
        except kind as error:
            assert fragment in error.body["message"], error.body
            assert error.code and error.type == "invalid_request_error"
        else:
            raise AssertionError(f"not refused: {arguments}")
    try:
        client.with_options(api_key="mck_wrong_0123456789").models.list()
    except openai.AuthenticationError as error:
        assert "API key" in error.body["message"]
    else:
        raise AssertionError("a stranger was let in")


@check
def texts_are_embedded(client):
    model = model_of(client, "embedding")
    # The client asks for base64 unless it is told otherwise.
    coded = client.embeddings.create(model=model, input=["a heron", "a stork", "a tax form"])
    heron, stork, form = [entry.embedding for entry in coded.data]
    assert len(heron) == 384 and abs(math.hypot(*heron) - 1) < 1e-3
    assert dot(heron, stork) > dot(heron, form), "meanings lie where they should"
    plain = client.embeddings.create(model=model, input="a heron", encoding_format="float")
    assert all(abs(a - b) < 1e-6 for a, b in zip(plain.data[0].embedding, heron))
    short = client.embeddings.create(model=model, input="a heron", dimensions=64)
    assert len(short.data[0].embedding) == 64
    assert plain.usage.total_tokens > 0
    try:
        client.embeddings.create(model=model, input=[1, 2, 3])
    except openai.BadRequestError as error:
        assert "of tokens" in error.body["message"], error.body
    else:
        raise AssertionError("tokens were taken")


def dot(left, right):
    return sum(a * b for a, b in zip(left, right))


def main():
    address, key = sys.argv[1:]
    client = openai.OpenAI(base_url=f"{address}/v1", api_key=key, timeout=300)
    failed = 0
    for function in CHECKS:
        try:
            function(client)
            print(f"{function.__name__} ... ok", flush=True)
        except Exception:  # Whatever it is, the other checks go on.
            failed += 1
            print(f"{function.__name__} ... FAILED", flush=True)
            traceback.print_exc()
    print(f"{len(CHECKS) - failed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
