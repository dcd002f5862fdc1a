"""lead.py AGENT: a stand-in for a model that has one idea: it gives every task to AGENT by the tool `delegate`, and repeats the answer.

It speaks OpenAI's API on a free port of 127.0.0.1, which it prints, so that what is shown does not depend on how well a small model calls
tools."""

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MODEL = "lead"
BODY_BYTES_MAX = 4 * 1024 * 1024


def idea(messages, agent):
    """What the model says next: a call of the tool for a task, the answer for a result."""
    last = messages[-1]
    if last["role"] == "tool":
        return {"content": text_of(last)}, "stop"
    arguments = json.dumps({"agent": agent, "task": text_of(last)})
    call = {"index": 0, "id": f"call-{len(messages)}", "type": "function", "function": {"name": "delegate", "arguments": arguments}}
    return {"tool_calls": [call]}, "tool_calls"


def text_of(message):
    content = message["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.answer("application/json", json.dumps({"object": "list", "data": [{"id": MODEL, "object": "model"}]}))

    def do_POST(self):
        length = int(self.headers.get("content-length", 0))
        if length > BODY_BYTES_MAX:
            self.send_error(413)
            return
        asked = json.loads(self.rfile.read(length))
        delta, reason = idea(asked["messages"], self.server.agent)
        choices = [{"delta": delta}, {"delta": {}, "finish_reason": reason}]
        events = [json.dumps({"choices": [{"index": 0, **choice}]}) for choice in choices]
        self.answer("text/event-stream", "".join(f"data: {event}\n\n" for event in [*events, "[DONE]"]))

    def answer(self, kind, text):
        body = text.encode()
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def main(agent):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.agent = agent
    print(server.server_address[1], flush=True)
    server.serve_forever()


main(*sys.argv[1:])
