#!/usr/bin/env python3
"""Runs a shell command on a host, prints its output, ends with its exit code.

    python3 client.py TOKEN-FILE 'make -j4' ssh host node holdfast.js --bridge
"""
import base64, json, struct, subprocess, sys, uuid


def read_message(first=b""):
    """Reads a frame: a length in 4 bytes, big-endian, then JSON."""
    header = first + bridge.stdout.read(4 - len(first))
    if len(header) < 4:
        sys.exit("connection lost: the process goes on")
    return json.loads(bridge.stdout.read(struct.unpack(">I", header)[0]))


def request(method, **params):
    """Sends a request. The answer is one of the messages to come."""
    body = json.dumps({"jsonrpc": "2.0", "id": method, "method": method, "params": params, "auth": token}).encode()
    try:
        bridge.stdin.write(struct.pack(">I", len(body)) + body)
        bridge.stdin.flush()
    except BrokenPipeError:
        pass  # what is read next says why


def result(answer):
    if "error" in answer:
        sys.exit("error: {message} {data}".format(**{"data": "", **answer["error"]}))
    return answer["result"]


token_file, script, *connect = sys.argv[1:]
with open(token_file) as file:
    token = file.read().strip()
bridge = subprocess.Popen(connect, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

request("server.capabilities")
noise = b""  # what rc files print; a frame begins with 0x00
while (byte := bridge.stdout.read(1)) != b"\0":
    noise += byte
    if not byte or len(noise) > 65536:
        sys.exit("error: no daemon answered, but " + repr(noise.decode(errors="replace")))
capabilities = result(read_message(byte))
assert "native" in capabilities["features"], capabilities

request("process.spawn", id=str(uuid.uuid4()), command="/bin/sh", args=["-c", script])
while True:
    message = read_message()
    if message.get("type") != "stream":
        if "id" in message:
            result(message)
    elif message["stream"] == "exit":
        sys.exit(message["exitCode"])
    else:
        output = sys.stdout.buffer if message["stream"] == "stdout" else sys.stderr.buffer
        output.write(base64.b64decode(message["data"]))
        output.flush()
