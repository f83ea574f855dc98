"""A server whose language model is behind llama.cpp's server: chats, their prefixes, deletions.

usage: check.py ADDRESS API_KEY MODEL_SERVER_PID
"""

import json
import os
import signal
import sys
import time
import traceback
import urllib.error
import urllib.request

ADDRESS, API_KEY, MODEL_SERVER = sys.argv[1], sys.argv[2], int(sys.argv[3])
CHECKS = []


def check(function):
    CHECKS.append(function)
    return function


def call(method, path, body=None):
    headers = {"Authorization": f"Bearer {API_KEY}", "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(ADDRESS + path, data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=300) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


class Talk:
    def __init__(self, cube):
        self.cube, self.messages = cube, [{"role": "system", "content": "You are Ann's friend."}]

    def say(self, text):
        self.messages.append({"role": "user", "content": text})
        body = {"cube": self.cube, "max_tokens": 12, "temperature": 0, "messages": self.messages}
        status, reply = call("POST", "/v1/chat/completions", body)
        assert status == 200, reply
        said = reply["choices"][0]["message"]
        self.messages.append({"role": "assistant", "content": said["content"]})
        return reply


def cached(reply):
    return reply["usage"]["prompt_tokens_details"]["cached_tokens"]


@check
def every_turn_begins_with_what_the_server_has_read():
    assert call("POST", "/v1/cubes", {"id": "ann"})[0] == 201
    for fact in ("Ann moved to Lisbon in May.", "Ann has a greyhound called Luna."):
        assert call("POST", "/v1/cubes/ann/memories", {"text": fact})[0] == 201
    talk, known = Talk("ann"), 0
    for question in ("Where does Ann live?", "What is her greyhound called?", "And who am I?"):
        reply = talk.say(question)
        usage = reply["usage"]
        assert cached(reply) >= known, (question, cached(reply), known)
        # The last token of a prompt is always computed.
        known = usage["prompt_tokens"] - 8
        assert reply["memcube"]["memories"], reply
    assert cached(reply) > 60, usage


@check
def what_is_deleted_is_not_used_again():
    status, listed = call("GET", "/v1/cubes/ann/memories?limit=100")
    [luna] = [m["id"] for m in listed["memories"] if m["text"].startswith("Ann has a greyhound")]
    talk = Talk("ann")
    used = [m["id"] for m in talk.say("Who is Luna, the greyhound?")["memcube"]["memories"]]
    assert luna in used, used
    assert call("DELETE", f"/v1/cubes/ann/memories/{luna}")[0] in (200, 204)
    used = [m["id"] for m in talk.say("Who is Luna, the greyhound?")["memcube"]["memories"]]
    assert luna not in used, used


@check
def metrics_tell_what_the_server_says():
    request = urllib.request.Request(ADDRESS + "/metrics", headers={"Authorization": f"Bearer {API_KEY}"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        metrics = answer.read().decode()
    assert 'memcube_prompt_tokens_total{from="remote"}' in metrics, metrics
    assert 'memcube_remote_wait_seconds' in metrics, metrics


@check
def without_the_server_an_answer_says_so():
    os.kill(MODEL_SERVER, signal.SIGKILL)
    time.sleep(0.5)
    body = {"cube": "ann", "messages": [{"role": "user", "content": "Are you there?"}]}
    status, problem = call("POST", "/v1/chat/completions", body)
    assert status == 503, problem
    assert "inference.url" in json.dumps(problem), problem


failed = 0
for number, function in enumerate(CHECKS, 1):
    try:
        function()
        print(f"ok {number} - {function.__name__}", flush=True)
    except Exception:
        failed += 1
        traceback.print_exc()
        print(f"not ok {number} - {function.__name__}", flush=True)
print(f"{len(CHECKS) - failed} passed, {failed} failed")
sys.exit(1 if failed else 0)
