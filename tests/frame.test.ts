import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { Failure } from "../failure.ts";
import type { FrameDecoder, FrameEvent, Framing } from "../frame.ts";
import { createFrameDecoder, encodeFrame, maxBodyBytes, maxSkippedBytes, strangerBodyBytes } from "../frame.ts";
import { checkFrames } from "./fuzz/frame.ts";
import { createRandom } from "./fuzz/random.ts";

const kib64 = 65_536;

/** What the wire carries, row by row: `bodies` become `bytes`, and `bytes` (each character one) become `bodies`. */
const frames: { name: string; framing: Framing; bodies: string[]; bytes: string }[] = [
  { name: "one native byte", framing: "native", bodies: ["7"], bytes: "\0\0\0\x017" },
  { name: "an empty native body", framing: "native", bodies: [""], bytes: "\0\0\0\0" },
  { name: "two native bodies", framing: "native", bodies: ["{}", '{"a":1}'], bytes: '\0\0\0\x02{}\0\0\0\x07{"a":1}' },
  {
    name: "a native body between empty ones",
    framing: "native",
    bodies: ["", "[]", ""],
    bytes: "\0\0\0\0\0\0\0\x02[]\0\0\0\0",
  },
  { name: "native newlines", framing: "native", bodies: ["{\n}", "\n"], bytes: "\0\0\0\x03{\n}\0\0\0\x01\n" },
  {
    name: "a native body of UTF-8",
    framing: "native",
    bodies: ['"é€😀"'],
    bytes: '\0\0\0\x0b"\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80"',
  },
  {
    name: "a native length of two digits",
    framing: "native",
    bodies: [`"${"x".repeat(256)}"`],
    bytes: `\0\0\x01\x02"${"x".repeat(256)}"`,
  },
  {
    name: "a native length above 127",
    framing: "native",
    bodies: ["x".repeat(200)],
    bytes: `\0\0\0\xc8${"x".repeat(200)}`,
  },
  { name: "one line", framing: "lines", bodies: ["7"], bytes: "7\n" },
  { name: "two lines", framing: "lines", bodies: ["{}", '{"a":1}'], bytes: '{}\n{"a":1}\n' },
  { name: "a line of UTF-8", framing: "lines", bodies: ['"é€😀"'], bytes: '"\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80"\n' },
  {
    name: "a line longer than the first store",
    framing: "lines",
    bodies: ["x".repeat(5000), "{}"],
    bytes: `${"x".repeat(5000)}\n{}\n`,
  },
];

const over = (oversizeBytes: number, fatal = false) => ({ oversizeBytes, fatal });

/** What is also understood, but never sent; and what is reported instead of a body. */
const streams: { name: string; limitBytes?: number; bytes: string; events: object[]; framing?: Framing }[] = [
  { name: "nothing", bytes: "", events: [] },
  {
    name: "a line that ends in \\r\\n",
    bytes: "{}\r\n[]\r\n",
    events: [{ body: "{}" }, { body: "[]" }],
    framing: "lines",
  },
  { name: "only one \\r of two", bytes: "{}\r\r\n", events: [{ body: "{}\r" }], framing: "lines" },
  { name: "a \\r inside a line", bytes: "{\r}\n", events: [{ body: "{\r}" }], framing: "lines" },
  { name: "blank lines", bytes: "\n\r\n\n{}\n\n\r\n", events: [{ body: "{}" }], framing: "lines" },
  {
    name: "a last line without its newline",
    bytes: "{}\n[]",
    events: [{ body: "{}" }, { body: "[]" }],
    framing: "lines",
  },
  { name: "a last line that ends in \\r", bytes: "{}\r", events: [{ body: "{}" }], framing: "lines" },
  {
    name: "a zero byte in a line",
    bytes: "x\0\0\0\n\0\n",
    events: [{ body: "x\0\0\0" }, { body: "\0" }],
    framing: "lines",
  },
  { name: "a line of n - 1 bytes", limitBytes: 4, bytes: "xxx\n", events: [{ body: "xxx" }] },
  { name: "a line of n bytes", limitBytes: 4, bytes: "xxxx\n", events: [{ body: "xxxx" }] },
  { name: "a line of n bytes and \\r\\n", limitBytes: 4, bytes: "xxxx\r\n", events: [{ body: "xxxx" }] },
  { name: "a line of n + 1 bytes", limitBytes: 4, bytes: "xxxxx\n{}\n", events: [over(5), { body: "{}" }] },
  {
    name: "a line of n + 1 bytes and \\r\\n",
    limitBytes: 4,
    bytes: "xxxxx\r\n{}\n",
    events: [over(6), { body: "{}" }],
  },
  { name: "a line of n + 9 bytes", limitBytes: 4, bytes: "xxxxxxxxxxxxx\n{}\n", events: [over(13), { body: "{}" }] },
  { name: "a line over the limit without its newline", limitBytes: 4, bytes: "xxxxxx", events: [over(6)] },
  { name: "a native body of n - 1 bytes", limitBytes: 4, bytes: "\0\0\0\x03xxx", events: [{ body: "xxx" }] },
  { name: "a native body of n bytes", limitBytes: 4, bytes: "\0\0\0\x04xxxx", events: [{ body: "xxxx" }] },
  {
    name: "a native body of n + 1 bytes",
    limitBytes: 4,
    bytes: "\0\0\0\x05xxxxx\0\0\0\x02{}",
    events: [over(5), { body: "{}" }],
  },
  {
    name: "a native body over the limit after another",
    limitBytes: 4,
    bytes: "\0\0\0\x02{}\0\0\0\x05xxxxx\0\0\0\x01x",
    events: [{ body: "{}" }, over(5), { body: "x" }],
  },
  {
    name: "a native length whose first byte is not 0",
    bytes: "\0\0\0\x02{}\x01\0\0\0xx",
    events: [{ body: "{}" }, over(0x1000000)],
  },
  { name: "a native length of 64 MiB", bytes: "\0\0\0\0\x04\0\0\0", events: [{ body: "" }, over(maxSkippedBytes)] },
  {
    name: "a native length over 64 MiB",
    bytes: "\0\0\0\0\x04\0\0\x01x\0\0\0\x02{}",
    events: [{ body: "" }, over(maxSkippedBytes + 1, true)],
  },
  {
    name: "a native length of all ones",
    bytes: "\0\0\0\0\xff\xff\xff\xff",
    events: [{ body: "" }, over(0xffffffff, true)],
  },
  {
    name: "lines sent on a native connection",
    bytes: '\0\0\0\0{"id":1}\n',
    events: [{ body: "" }, over(0x7b226964, true)],
    framing: "native",
  },
  { name: "a header cut after 1 byte", bytes: "\0", events: [], framing: "native" },
  { name: "a header cut after 3 bytes", bytes: "\0\0\0", events: [] },
  { name: "a body cut before its first byte", bytes: "\0\0\0\x05", events: [] },
  { name: "a body cut before its last byte", bytes: "\0\0\0\x05{   ", events: [] },
  { name: "an oversize body cut", limitBytes: 4, bytes: "\0\0\0\x05xx", events: [over(5)] },
];

const encode = suite("encodeFrame()");

for (const { name, framing, bodies, bytes } of frames) {
  encode(`writes ${name}`, () => {
    assert.is(text(Buffer.concat(bodies.map((body) => encodeFrame(body, framing)))), bytes);
  });
  encode(`writes ${name} from bytes`, () => {
    const parts = bodies.map((body) => encodeFrame(new TextEncoder().encode(body), framing));
    assert.is(text(Buffer.concat(parts)), bytes);
  });
}

encode("turns newlines into spaces in lines framing", () => {
  assert.is(encodeFrame('\n{\n\n"a": 1}\n', "lines").toString(), ' {  "a": 1} \n');
});

for (const framing of ["native", "lines"] as const) {
  for (const bodyBytes of [maxBodyBytes - 1, maxBodyBytes]) {
    encode(`accepts ${bodyBytes} bytes, ${framing}`, () => {
      const [event, ...rest] = readAll(createFrameDecoder(), encodeFrame("x".repeat(bodyBytes), framing));
      assert.is(event !== undefined && "body" in event ? event.body.length : -1, bodyBytes);
      assert.equal(rest, []);
    });
  }
  for (const [what, body] of [
    ["as a string", "x".repeat(maxBodyBytes + 1)],
    ["as half as many characters", "é".repeat((maxBodyBytes + 1) / 2)],
    ["as bytes", new Uint8Array(maxBodyBytes + 1)],
  ] as const) {
    encode(`refuses ${maxBodyBytes + 1} bytes ${what}, ${framing}`, () => {
      const message = `Cannot encode frame: its body has ${maxBodyBytes + 1} bytes, at most ${maxBodyBytes} are accepted`;
      assert.throws(
        () => encodeFrame(body, framing),
        (error: unknown) => error instanceof Failure && error.message === message,
      );
    });
  }
}

encode.run();

const decode = suite("createFrameDecoder()");

for (const { name, framing, bodies, bytes } of frames) {
  for (const [how, cut] of Object.entries(waysToCut(wire(bytes)))) {
    decode(`reads ${name} ${how}`, () =>
      checkStream(
        cut,
        {},
        bodies.map((body) => ({ body: text(Buffer.from(body)) })),
        framing,
      ),
    );
  }
}

for (const { name, limitBytes, bytes, events, framing } of streams) {
  const options = limitBytes === undefined ? {} : { maxBodyBytes: limitBytes };
  for (const [how, cut] of Object.entries(waysToCut(wire(bytes)))) {
    decode(`reads ${name} ${how}`, () => checkStream(cut, options, events, framing));
  }
}

decode("knows no framing before the first byte", () => {
  const decoder = createFrameDecoder();
  assert.is(decoder.framing, undefined);
  assert.equal(decoder.push(new Uint8Array(0)), []);
  assert.is(decoder.framing, undefined);
  assert.equal(decoder.end(), []);
});

decode("reads a body as soon as its last byte is there, and not before", () => {
  const decoder = createFrameDecoder();
  assert.equal(plain(decoder.push(wire("\0\0\0\x03{ "))), []);
  assert.equal(plain(decoder.push(wire("}\0"))), [{ body: "{ }" }]);
  assert.equal(plain(decoder.push(wire("\0\0\0"))), [{ body: "" }]);
});

decode("reports a native body over the limit from its header alone", () => {
  const decoder = createFrameDecoder();
  assert.equal(decoder.push(wire("\0\0\0\0")).length, 1);
  assert.equal(decoder.push(wire("\x01\0\0\0")), [over(0x1000000)]);
  assert.equal(decoder.push(Buffer.alloc(1000)), []);
});

decode("reports a native body over a stranger's limit from its header alone", () => {
  const decoder = createFrameDecoder({ maxBodyBytes: 4 });
  assert.equal(decoder.push(wire("\0\0\0\x05")), [over(5)]);
});

decode("reports a native body over all limits from its header alone, also behind another frame", () => {
  const decoder = createFrameDecoder({ maxBodyBytes: 4 });
  assert.equal(plain(decoder.push(wire("\0\0\0\0\x01\0\0\0"))), [{ body: "" }, over(0x1000000)]);
});

decode("reads past 64 MiB native, and on", () => {
  const decoder = createFrameDecoder();
  decoder.push(wire("\0\0\0\0\x04\0\0\0"));
  for (let sent = 0; sent < maxSkippedBytes; sent += kib64) assert.equal(decoder.push(Buffer.alloc(kib64)), []);
  assert.equal(plain(decoder.push(wire("\0\0\0\x02{}"))), [{ body: "{}" }]);
});

decode("reads past a line of 64 MiB, and on", () => {
  const decoder = createFrameDecoder();
  for (let sent = 0; sent < maxSkippedBytes; sent += kib64) assert.equal(decoder.push(Buffer.alloc(kib64, "x")), []);
  assert.equal(plain(decoder.push(wire("\n{}\n"))), [over(maxSkippedBytes), { body: "{}" }]);
});

decode("gives up a line of 64 MiB and a byte at once, and reads nothing more", () => {
  const decoder = createFrameDecoder();
  for (let sent = 0; sent < maxSkippedBytes; sent += kib64) decoder.push(Buffer.alloc(kib64, "x"));
  assert.equal(decoder.push(wire("x")), [over(maxSkippedBytes + 1, true)]);
  assert.equal(decoder.push(wire("\n{}\n")), []);
  assert.equal(decoder.end(), []);
});

decode("reads nothing more after a native body over 64 MiB", () => {
  const decoder = createFrameDecoder();
  assert.equal(decoder.push(wire("\0\0\0\0\x04\0\0\x01x")).length, 2);
  for (let sent = 0; sent < maxSkippedBytes; sent += kib64) decoder.push(Buffer.alloc(kib64));
  assert.equal(decoder.push(wire("\0\0\0\x02{}")), []);
  assert.equal(decoder.end(), []);
});

for (const framing of ["native", "lines"] as const) {
  decode(`obeys a limit that is raised after a frame, ${framing}`, () => {
    const body = "x".repeat(strangerBodyBytes + 1);
    const decoder = createFrameDecoder({ maxBodyBytes: strangerBodyBytes });
    assert.equal(decoder.push(encodeFrame(body, framing)), [over(strangerBodyBytes + 1)]);
    decoder.maxBodyBytes = maxBodyBytes;
    assert.equal(plain(decoder.push(encodeFrame(body, framing))), [{ body }]);
  });

  // The request with the token and the large one after it arrive together as far as a chunk goes: the rest comes later.
  decode(`obeys a limit that is raised between the chunks of a body, ${framing}`, () => {
    for (const kept of [4, 5, 10]) {
      const body = "x".repeat(12);
      const decoder = createFrameDecoder({ maxBodyBytes: 10 });
      const bytes = Buffer.concat([encodeFrame("token", framing), encodeFrame(body, framing)]);
      const cut = encodeFrame("token", framing).length + kept;
      assert.equal(plain(decoder.push(bytes.subarray(0, cut))), [{ body: "token" }]);
      decoder.maxBodyBytes = maxBodyBytes;
      assert.equal(plain(decoder.push(bytes.subarray(cut))), [{ body }]);
    }
  });

  decode(`goes on past a body when the limit is raised inside it, ${framing}`, () => {
    const decoder = createFrameDecoder({ maxBodyBytes: 10 });
    const bytes = Buffer.concat(["x".repeat(50), "{}"].map((body) => encodeFrame(body, framing)));
    const before = decoder.push(bytes.subarray(0, 30));
    decoder.maxBodyBytes = maxBodyBytes;
    assert.equal(plain([...before, ...decoder.push(bytes.subarray(30))]), [over(50), { body: "{}" }]);
  });

  decode(`refuses the large body behind another when the limit stays, ${framing}`, () => {
    const decoder = createFrameDecoder({ maxBodyBytes: 10 });
    const bytes = Buffer.concat(["small", "x".repeat(12), "next"].map((body) => encodeFrame(body, framing)));
    const events = [bytes.subarray(0, 16), bytes.subarray(16)].flatMap((chunk) => plain(decoder.push(chunk)));
    assert.equal(events, [{ body: "small" }, over(12), { body: "next" }]);
  });

  decode(`obeys a limit that is lowered inside a body, ${framing}`, () => {
    const decoder = createFrameDecoder();
    const bytes = Buffer.concat(["first", "x".repeat(5000), "{}"].map((body) => encodeFrame(body, framing)));
    assert.equal(decoder.push(bytes.subarray(0, 3000)).length, 1);
    decoder.maxBodyBytes = 100;
    assert.equal(plain(decoder.push(bytes.subarray(3000))), [over(5000), { body: "{}" }]);
  });

  decode(`keeps what a chunk held when the chunk is used again, ${framing}`, () => {
    const bytes = encodeFrame("held over", framing);
    const decoder = createFrameDecoder();
    const chunk = Buffer.from(bytes.subarray(0, 8));
    decoder.push(chunk);
    chunk.fill("-");
    assert.equal(plain(decoder.push(bytes.subarray(8))), [{ body: "held over" }]);
  });

  decode(`returns a view of the chunk, not a copy, ${framing}`, () => {
    const chunk = new Uint8Array(Buffer.concat([Buffer.from("..."), encodeFrame("{}", framing)])).subarray(3);
    const [event] = createFrameDecoder().push(chunk);
    assert.ok(event !== undefined && "body" in event);
    assert.is(event.body.buffer, chunk.buffer);
    assert.is(event.body.toString(), "{}");
  });

  decode(`reads ${maxBodyBytes} bytes in chunks of 64 KiB, ${framing}`, () => {
    const body = Buffer.alloc(maxBodyBytes, "0123456789");
    const bytes = encodeFrame(body, framing);
    const decoder = createFrameDecoder();
    const events: FrameEvent[] = [];
    for (let at = 0; at < bytes.length; at += kib64) events.push(...decoder.push(bytes.subarray(at, at + kib64)));
    assert.is(events.length, 1);
    assert.ok("body" in events[0]! && events[0].body.equals(body));
  });

  // Quadratic copying would move 2 TB here.
  decode(`reads 2 MiB a byte at a time, ${framing}`, () => {
    const body = Buffer.alloc(2 * 1024 * 1024, "0123456789");
    const [event, ...rest] = readAll(createFrameDecoder(), encodeFrame(body, framing), 1);
    assert.ok(event !== undefined && "body" in event && event.body.equals(body));
    assert.equal(rest, []);
  });

  decode(`allocates for what has arrived, not for what may come, ${framing}`, () => {
    const decoders = Array.from({ length: 64 }, () => createFrameDecoder());
    const beginning = encodeFrame(Buffer.alloc(maxBodyBytes, "x"), framing).subarray(0, 1000);
    const before = process.memoryUsage().arrayBuffers;
    for (const decoder of decoders) decoder.push(beginning);
    assert.ok(process.memoryUsage().arrayBuffers - before < decoders.length * 10_000);
    assert.ok(decoders.every((decoder) => decoder.end().length === (framing === "lines" ? 1 : 0)));
  });
}

decode("stores nothing of a line that it reads past", async () => {
  const decoder = createFrameDecoder();
  const chunk = Buffer.alloc(kib64, "x");
  const before = await leastBytesHeld();
  for (let sent = 0; sent < maxBodyBytes + kib64; sent += kib64) decoder.push(chunk);
  assert.ok((await leastBytesHeld()) - before < 1024 * 1024);
  for (let sent = 0; sent < maxBodyBytes; sent += kib64) decoder.push(chunk);
  assert.ok((await leastBytesHeld()) - before < 1024 * 1024);
  assert.is(decoder.end().length, 1);
});

// the same once more for half a million seeds: fuzz.test.ts
for (let seed = 1; seed <= 200; seed++) {
  decode(`agrees with a second reading of random bytes cut at random, seed ${seed}`, () =>
    checkFrames(createRandom(seed)),
  );
}

for (const framing of ["native", "lines"] as const) {
  decode(`stops at as many events as it is told, and says how much it has taken, ${framing}`, () => {
    const bodies = ["1", "22", "333", "4444"];
    const chunk = Buffer.concat([...bodies.map((body) => encodeFrame(body, framing)), Buffer.from([0])]);
    for (const most of [1, 2, 3, 4, 5, Infinity]) {
      const decoder = createFrameDecoder();
      const found: string[] = [];
      let calls = 0;
      for (let rest = chunk; rest.length > 0; rest = rest.subarray(decoder.takenBytes), calls++) {
        const events = decoder.push(rest, most);
        assert.ok(events.length <= most);
        for (const event of events) found.push(String((event as { body: Buffer }).body));
      }
      assert.equal(found, bodies);
      assert.is(calls, most > 4 ? 1 : Math.floor(4 / most) + 1);
    }
  });
}

decode("gives up a body under way: what comes of it is read past, and what comes after it is read", () => {
  for (const framing of ["native", "lines"] as const) {
    const decoder = createFrameDecoder();
    const frame = encodeFrame("x".repeat(5_000_000), framing);
    assert.equal(decoder.push(frame.subarray(0, 4_000_000)), []);
    assert.ok(decoder.heldBytes >= 3_999_000);
    decoder.giveUp();
    assert.is(decoder.heldBytes, 0);
    assert.equal(decoder.push(frame.subarray(4_000_000, 4_500_000)), []);
    const events = decoder.push(Buffer.concat([frame.subarray(4_500_000), encodeFrame("next", framing)]));
    assert.equal(
      events.map((event) => String((event as { body: Buffer }).body)),
      ["next"],
    );
    assert.is(decoder.heldBytes, 0);
  }
});

decode.run();

/** Of buffers, after several collections: V8 frees their memory on a thread of its own, some time after the first. */
async function leastBytesHeld(): Promise<number> {
  setFlagsFromString("--expose-gc");
  const collectGarbage: () => void = runInNewContext("gc");
  let bytes = Infinity;
  for (let round = 0; round < 10; round++) {
    collectGarbage();
    await new Promise((resolve) => setTimeout(resolve, 20));
    bytes = Math.min(bytes, process.memoryUsage().arrayBuffers);
  }
  return bytes;
}

function wire(bytes: string): Buffer {
  return Buffer.from(bytes, "latin1");
}

function text(bytes: Uint8Array): string {
  return Buffer.from(bytes).toString("latin1");
}

function plain(events: FrameEvent[]): object[] {
  return events.map((event) => ("body" in event ? { body: text(event.body) } : event));
}

function readAll(decoder: FrameDecoder, bytes: Buffer, chunkBytes = bytes.length): FrameEvent[] {
  const events: FrameEvent[] = [];
  for (let at = 0; at < bytes.length; at += chunkBytes)
    events.push(...decoder.push(bytes.subarray(at, at + chunkBytes)));
  events.push(...decoder.end());
  return events;
}

/** Each way is a list of streams, each stream a list of chunks. */
function waysToCut(bytes: Buffer): Record<string, Buffer[][]> {
  const at = Array.from({ length: bytes.length + 1 }, (_, index) => index);
  return {
    "in one chunk": [[bytes]],
    "fed a byte at a time": [Array.from(bytes, (_, index) => bytes.subarray(index, index + 1))],
    "cut in two, anywhere": at.map((index) => [bytes.subarray(0, index), bytes.subarray(index)]),
  };
}

function checkStream(
  cuts: Buffer[][],
  options: { maxBodyBytes?: number },
  events: object[],
  framing: Framing | undefined,
): void {
  for (const chunks of cuts) {
    const decoder = createFrameDecoder(options);
    const found = chunks.flatMap((chunk) => decoder.push(chunk));
    found.push(...decoder.end());
    assert.equal(plain(found), events);
    if (framing !== undefined) assert.is(decoder.framing, framing);
  }
}
