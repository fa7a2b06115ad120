import { suite } from "uvu";
import * as assert from "uvu/assert";
import { errorCodes, Failure, osFailure } from "../failure.ts";
import { maxBodyBytes, strangerBodyBytes } from "../frame.ts";
import type { Caller, Methods, Params, Peer } from "../rpc.ts";
import * as rpc from "../rpc.ts";
import { busyMs } from "./daemon.ts";

const token = "good token";
const unauthorized = { code: -32001, message: "Unauthorized: invalid or missing auth token" };
const invalidVersion = { code: -32600, message: "Invalid JSON-RPC version" };
const long = "x".repeat(1_000_000);

/** What the methods below were called with, oldest first. */
const calls: Params[] = [];

const methods: Methods = new Map<string, rpc.Method>([
  ["server.ping", () => ({ pong: true })],
  [
    "server.authenticate",
    ({ token: given }, caller) => {
      if (given !== token) throw new Failure(unauthorized.message, { code: errorCodes.unauthorized });
      caller.authenticated = caller.known = true;
      return { authenticated: true };
    },
  ],
  ["test.echo", (params) => params],
  ["test.later", async (params) => params],
  ["test.note", (params) => void calls.push(params)],
  ["test.noteLater", async (params) => void calls.push(params)],
  ["test.bytes", ({ bytes }) => "x".repeat(bytes as number)],
  ["test.bytesLater", async ({ bytes }) => "x".repeat(bytes as number)],
  ["test.null", () => null],
  ["test.false", () => false],
  [
    "test.circular",
    () => {
      const circle: Record<string, unknown> = {};
      circle.circle = circle;
      return circle;
    },
  ],
  ["test.bigint", async () => 1n],
  [
    "test.failure",
    () => {
      throw new Failure("Cannot do it", { code: -32002, data: { applied: 7 } });
    },
  ],
  [
    "test.failureLater",
    async () => {
      throw new Failure("Cannot do it", { code: -32002, data: { applied: 7 } });
    },
  ],
  [
    "test.hint",
    () => {
      throw new Failure("Cannot do it", { hint: "do this" });
    },
  ],
  [
    "test.dataAndHint",
    () => {
      throw new Failure("Cannot do it", { hint: "do this", data: { applied: 7 } });
    },
  ],
  [
    "test.plain",
    () => {
      throw new Failure("Cannot do it");
    },
  ],
  [
    "test.os",
    () => {
      throw osFailure('read "/x"', osError());
    },
  ],
  [
    "test.bare",
    () => {
      throw osError();
    },
  ],
  [
    "test.bareLater",
    async () => {
      throw osError();
    },
  ],
  [
    "test.error",
    () => {
      throw new RangeError("out of range");
    },
  ],
  [
    "test.string",
    () => {
      throw "a string";
    },
  ],
  [
    "test.undefined",
    () => {
      throw undefined;
    },
  ],
]);

const os = { code: -32603, message: "no such file or directory (ENOENT)", data: { errno: "ENOENT" } };

/** A request's members, all but `jsonrpc`, `id` and `auth`, to its result or error. */
const requests: { name: string; request: object; result?: unknown; error?: object }[] = [
  { name: "a result", request: { method: "server.ping" }, result: { pong: true } },
  { name: "a result that comes later", request: { method: "test.later", params: { a: 1 } }, result: { a: 1 } },
  { name: "an empty object for absent params", request: { method: "test.echo" }, result: {} },
  {
    name: "params as they are",
    request: { method: "test.echo", params: { a: { b: ["c", null, "é😀\n"] } } },
    result: { a: { b: ["c", null, "é😀\n"] } },
  },
  { name: "params that are null as none", request: { method: "test.note", params: null }, result: null },
  { name: "null for undefined", request: { method: "test.note", params: {} }, result: null },
  { name: "null for undefined that comes later", request: { method: "test.noteLater", params: {} }, result: null },
  { name: "null for null", request: { method: "test.null" }, result: null },
  { name: "false for false", request: { method: "test.false" }, result: false },
  {
    name: "a failure's code and data",
    request: { method: "test.failure" },
    error: { code: -32002, message: "Cannot do it", data: { applied: 7 } },
  },
  {
    name: "a failure that comes later",
    request: { method: "test.failureLater" },
    error: { code: -32002, message: "Cannot do it", data: { applied: 7 } },
  },
  {
    name: "a failure's hint",
    request: { method: "test.hint" },
    error: { code: -32603, message: "Cannot do it", data: { hint: "do this" } },
  },
  {
    name: "a failure's data and hint",
    request: { method: "test.dataAndHint" },
    error: { code: -32603, message: "Cannot do it", data: { applied: 7, hint: "do this" } },
  },
  {
    name: "a failure without data",
    request: { method: "test.plain" },
    error: { code: -32603, message: "Cannot do it" },
  },
  {
    name: "a failure made of an operating system's error",
    request: { method: "test.os" },
    error: { ...os, message: 'Cannot read "/x": no such file or directory (ENOENT)' },
  },
  { name: "an operating system's error", request: { method: "test.bare" }, error: os },
  { name: "an operating system's error that comes later", request: { method: "test.bareLater" }, error: os },
  {
    name: "an error without its stack",
    request: { method: "test.error" },
    error: { code: -32603, message: "out of range" },
  },
  { name: "a thrown string", request: { method: "test.string" }, error: { code: -32603, message: "a string" } },
  { name: "a thrown undefined", request: { method: "test.undefined" }, error: { code: -32603, message: "undefined" } },

  {
    name: "a method without a dot",
    request: { method: "ping" },
    error: { code: -32601, message: "Invalid method format: ping" },
  },
  { name: "an empty method", request: { method: "" }, error: { code: -32601, message: "Invalid method format: " } },
  {
    name: "a method without a namespace",
    request: { method: ".ping" },
    error: { code: -32601, message: "Invalid method format: .ping" },
  },
  {
    name: "a method without a name",
    request: { method: "server." },
    error: { code: -32601, message: "Invalid method format: server." },
  },
  {
    name: "an unknown namespace",
    request: { method: "git.clone" },
    error: { code: -32601, message: "Unknown namespace: git" },
  },
  {
    name: "the beginning of a namespace",
    request: { method: "serve.ping" },
    error: { code: -32601, message: "Unknown namespace: serve" },
  },
  {
    name: "an unknown method",
    request: { method: "server.pong" },
    error: { code: -32601, message: "Unknown method: server.pong" },
  },
  {
    name: "a method with a dot more",
    request: { method: "server.ping.x" },
    error: { code: -32601, message: "Unknown method: server.ping.x" },
  },
  {
    name: "a method of every object",
    request: { method: "server.constructor" },
    error: { code: -32601, message: "Unknown method: server.constructor" },
  },
  {
    name: "a namespace of every object",
    request: { method: "__proto__.x" },
    error: { code: -32601, message: "Unknown namespace: __proto__" },
  },
  {
    name: "a long method without a dot",
    request: { method: long },
    error: { code: -32601, message: `Invalid method format: ${"x".repeat(120)}…` },
  },
  {
    name: "a long namespace",
    request: { method: `${long}.x` },
    error: { code: -32601, message: `Unknown namespace: ${"x".repeat(120)}…` },
  },
  {
    name: "a long method",
    request: { method: `server.${long}` },
    error: { code: -32601, message: `Unknown method: server.${"x".repeat(113)}…` },
  },
  {
    name: "a long method cut inside a character",
    request: { method: `${"x".repeat(119)}😀` },
    error: { code: -32601, message: `Invalid method format: ${"x".repeat(119)}…` },
  },
  {
    name: "no method",
    request: {},
    error: { code: -32600, message: "Invalid request: the method is absent, it must be a string" },
  },
  {
    name: "a method that is a number",
    request: { method: 7 },
    error: { code: -32600, message: "Invalid request: the method is 7, it must be a string" },
  },
  {
    name: "params by position",
    request: { method: "server.ping", params: ["x"] },
    error: { code: -32602, message: "Cannot use params: they are an array, they must be an object" },
  },
  {
    name: "params that are a string",
    request: { method: "server.ping", params: long },
    error: { code: -32602, message: `Cannot use params: they are "${"x".repeat(120)}…", they must be an object` },
  },
  {
    name: "an unknown method before its params",
    request: { method: "server.pong", params: [] },
    error: { code: -32601, message: "Unknown method: server.pong" },
  },
  {
    name: "another version before the method",
    request: { jsonrpc: "1.0", method: "server.pong" },
    error: invalidVersion,
  },
  { name: "no version", request: { jsonrpc: undefined, method: "server.ping" }, error: invalidVersion },
  { name: "a version that is a number", request: { jsonrpc: 2, method: "server.ping" }, error: invalidVersion },
];

/** Bodies to whole answers, for ids and for what is no request at all. `undefined` is no answer. */
const bodies: { name: string; body: string | Uint8Array; answer: object | undefined }[] = [
  ...[0, 7, -1, 0.5, 9007199254740991, -9007199254740991, "", "a", "7", "é😀", "x".repeat(rpc.maxIdLength), null].map(
    (id) => ({
      name: `the id ${JSON.stringify(id).slice(0, 20)}`,
      body: JSON.stringify({ jsonrpc: "2.0", id, method: "server.ping", auth: token }),
      answer: { jsonrpc: "2.0", id, result: { pong: true } },
    }),
  ),
  ...[
    ["{}", "an object"],
    ["[1]", "an array"],
    ["true", "true"],
    ["1e999", "Infinity"],
    // the first is a double, the second is not: it was answered as the first, for which nobody waited
    ["9007199254740992", "9007199254740992"],
    ["9007199254740993", "9007199254740992"],
    ["-9007199254740992", "-9007199254740992"],
    [`"${"x".repeat(rpc.maxIdLength + 1)}"`, `"${"x".repeat(120)}…"`],
  ].map(([id, is]) => ({
    name: `the id ${id!.slice(0, 20)} that is ${is!.slice(0, 20)}`,
    body: `{"jsonrpc":"2.0","id":${id},"method":"server.ping","auth":"${token}"}`,
    answer: invalid(
      `the id is ${is}, it must be a string of at most 256 characters, a number of at most 2^53 - 1 or null`,
    ),
  })),
  ...[
    ["7", "7"],
    ['"a"', '"a"'],
    ["null", "null"],
    ["false", "false"],
  ].map(([body, is]) => ({
    name: `the JSON ${body}`,
    body: body!,
    answer: invalid(`it is ${is}, it must be an object`),
  })),
  { name: "an empty body", body: "", answer: parseError("the body is empty") },
  { name: "a byte that is not UTF-8", body: new Uint8Array([0x22, 0xff, 0x22]), answer: parseError("it is not UTF-8") },
  { name: "a character cut short", body: Buffer.from('"€').subarray(0, 3), answer: parseError("it is not UTF-8") },
  {
    name: "a surrogate in UTF-8",
    body: new Uint8Array([0x22, 0xed, 0xa0, 0x80, 0x22]),
    answer: parseError("it is not UTF-8"),
  },
  { name: "a body after one that was not UTF-8", body: "null", answer: invalid("it is null, it must be an object") },
  { name: "a byte order mark", body: "\ufeff7", answer: invalid("it is 7, it must be an object") },
  {
    name: "white space around a request",
    body: ` \r\n{"jsonrpc":"2.0","id":1,\n"method":"server.ping","auth":"${token}"}\t `,
    answer: { jsonrpc: "2.0", id: 1, result: { pong: true } },
  },
  { name: "a notification", body: encode({ method: "server.ping" }), answer: undefined },
  { name: "a notification that is answered later", body: encode({ method: "test.later" }), answer: undefined },
  { name: "a notification that fails", body: encode({ method: "test.failure" }), answer: undefined },
  { name: "a notification that fails later", body: encode({ method: "test.failureLater" }), answer: undefined },
  { name: "a notification of an unknown method", body: encode({ method: "server.pong" }), answer: undefined },
  {
    name: "a notification with params by position",
    body: encode({ method: "server.ping", params: [] }),
    answer: undefined,
  },
  {
    name: "a notification without a good token",
    body: encode({ method: "server.ping", auth: "bad" }),
    answer: undefined,
  },
  { name: "no id and no method", body: encode({}), answer: invalid("the method is absent, it must be a string") },
  {
    name: "no id and no version",
    body: encode({ jsonrpc: undefined, method: "server.ping" }),
    answer: { jsonrpc: "2.0", id: null, error: invalidVersion },
  },
  {
    name: "no id, no method and no good token",
    body: encode({ auth: "bad" }),
    answer: { jsonrpc: "2.0", id: null, error: unauthorized },
  },
  { name: "an empty object", body: "{}", answer: { jsonrpc: "2.0", id: null, error: unauthorized } },
  {
    name: "another's response",
    body: encode({ id: 7, result: 1 }),
    answer: { ...invalid("the method is absent, it must be a string"), id: 7 },
  },
];

const pong = { jsonrpc: "2.0", result: { pong: true } };
const notRequest = (is: string) => invalid(`it is ${is}, it must be an object`);

/** Batches to the answers in them; `undefined` is no answer at all. */
const batches: { name: string; batch: unknown[]; answer: object | undefined }[] = [
  { name: "one request", batch: [ping(1)], answer: [{ ...pong, id: 1 }] },
  {
    name: "requests of which the first is answered last",
    batch: [{ ...ping(1), method: "test.later" }, ping(2)],
    answer: [
      { jsonrpc: "2.0", id: 1, result: {} },
      { ...pong, id: 2 },
    ],
  },
  {
    name: "a notification between requests",
    batch: [ping(1), ping(), ping("b")],
    answer: [
      { ...pong, id: 1 },
      { ...pong, id: "b" },
    ],
  },
  { name: "only notifications", batch: [ping(), ping()], answer: undefined },
  {
    name: "only notifications, some done later",
    batch: [ping(), { ...ping(), method: "test.later" }],
    answer: undefined,
  },
  {
    name: "what are no requests",
    batch: [1, "a", null, [], [ping(1)]],
    answer: [notRequest("1"), notRequest('"a"'), notRequest("null"), notRequest("an array"), notRequest("an array")],
  },
  {
    name: "errors beside results",
    batch: [{ ...ping(1), method: "test.failureLater" }, ping(2), { ...ping(3), auth: "bad" }, {}],
    answer: [
      { jsonrpc: "2.0", id: 1, error: { code: -32002, message: "Cannot do it", data: { applied: 7 } } },
      { ...pong, id: 2 },
      { jsonrpc: "2.0", id: 3, error: unauthorized },
      { jsonrpc: "2.0", id: null, error: unauthorized },
    ],
  },
  {
    name: "the same id twice",
    batch: [ping(1), ping(1)],
    answer: [
      { ...pong, id: 1 },
      { ...pong, id: 1 },
    ],
  },
  { name: "nothing", batch: [], answer: invalid("the batch has 0 requests, it must have 1 to 1000") },
  {
    name: "n - 1 requests",
    batch: pings(rpc.maxBatchLength - 1),
    answer: pings(rpc.maxBatchLength - 1).map(({ id }) => ({ ...pong, id })),
  },
  {
    name: "n requests",
    batch: pings(rpc.maxBatchLength),
    answer: pings(rpc.maxBatchLength).map(({ id }) => ({ ...pong, id })),
  },
  {
    name: "n + 1 requests",
    batch: pings(rpc.maxBatchLength + 1),
    answer: invalid("the batch has 1001 requests, it must have 1 to 1000"),
  },
];

/** One for all, as in a daemon: nothing of one request may be left for the next. */
const shared = create();

const handle = suite("handleBody()");

for (const { name, request, result, error } of requests) {
  const body = encode({ id: 7, ...request });
  const answer = { jsonrpc: "2.0", id: 7, ...(error === undefined ? { result } : { error }) };
  handle(`answers ${name}`, async () => checkAnswer(await ask(body), answer));
  handle(`answers ${name} in a batch`, async () => checkAnswer(await ask(`[${body},${body}]`), [answer, answer]));
}

for (const { name, body, answer } of bodies) {
  handle(`answers ${name}`, async () => checkAnswer(await ask(body), answer));
}

for (const { name, batch, answer } of batches) {
  handle(`answers a batch of ${name}`, async () => checkAnswer(await ask(JSON.stringify(batch)), answer));
}

handle("answers what is not JSON with the parser's reason, cut", async () => {
  for (const body of ["{", '{"a":}', "hello", "{} {}", `{"a":${"a".repeat(1000)}}`]) {
    const answer = JSON.parse((await ask(body))!);
    assert.equal(Object.keys(answer), ["jsonrpc", "id", "error"]);
    assert.is(answer.id, null);
    assert.is(answer.error.code, -32700);
    assert.is(answer.error.message, "Parse error");
    assert.ok(answer.error.data.reason.length > 0 && answer.error.data.reason.length <= 121);
  }
});

handle("says how a message is sent, where a body is but a part of one: a line of pretty-printed JSON", async () => {
  for (const [body, isPart] of [
    ["{", true],
    ['  "jsonrpc": "2.0",', true],
    ['  "params": {', true],
    ["  },", true],
    ["}", true],
    ["hello", true],
    ['{"a":}', false],
    ["{} {}", false],
    [" [1,] ", false],
    ["", false],
    [" ", false],
  ] as const) {
    const { hint } = JSON.parse((await ask(body))!).error.data;
    assert.is(/one object a line/.test(hint), isPart, body);
  }
});

handle("writes the members of an answer in the order of the specification", async () => {
  assert.is(await ask(encode({ id: 7, method: "server.ping" })), '{"jsonrpc":"2.0","id":7,"result":{"pong":true}}');
  const error = '{"code":-32002,"message":"Cannot do it","data":{"applied":7}}';
  assert.is(await ask(encode({ id: 7, method: "test.failure" })), `{"jsonrpc":"2.0","id":7,"error":${error}}`);
});

handle("answers at once what needs no waiting, and makes a promise only of a promise", async () => {
  const handle = create();
  const sync = (request: object) => handle(bytes(encode(request)), caller());
  assert.type(sync({ id: 1, method: "server.ping" }), "string");
  assert.type(sync({ id: 1, method: "test.failure" }), "string");
  assert.is(sync({ method: "server.ping" }), undefined);
  assert.type(handle(bytes(JSON.stringify(pings(3))), caller()), "string");
  assert.instance(sync({ id: 1, method: "test.later" }), Promise);
  assert.instance(sync({ method: "test.later" }), Promise);
  assert.instance(handle(bytes(JSON.stringify([ping(1), { ...ping(2), method: "test.later" }])), caller()), Promise);
});

handle("has called every method of a batch, in order, when it returns", async () => {
  calls.length = 0;
  const note = (method: string, n: number) => ({ ...ping(n), method, params: { n } });
  const batch = [note("test.noteLater", 1), note("test.note", 2), note("test.noteLater", 3)];
  const answer = ask(JSON.stringify(batch));
  assert.equal(calls, [{ n: 1 }, { n: 2 }, { n: 3 }]);
  await answer;
});

handle("carries out a notification, if it is authorized", async () => {
  calls.length = 0;
  for (const auth of [token, "bad", undefined]) await ask(encode({ method: "test.note", params: { auth }, auth }));
  assert.equal(calls, [{ auth: token }]);
});

handle("answers a result that is no JSON", async () => {
  for (const method of ["test.circular", "test.bigint"]) {
    const answer = JSON.parse((await ask(encode({ id: 7, method })))!);
    assert.equal([answer.id, answer.error.code], [7, -32603]);
  }
});

handle("refuses JSON nested a million deep", async () => {
  const refusal = JSON.parse((await ask("[".repeat(1_000_000) + "]".repeat(1_000_000)))!);
  assert.equal([refusal.id, refusal.error.code], [null, -32600]);
});

/** As deep as goes, beside the objects and members of a request. */
const deepestNesting = rpc.maxMembers / 2 - 10;
const nestings: [name: string, open: string, close: string][] = [
  ["arrays", "[", "]"],
  ["objects", '{"":', "}"],
];
for (const [name, open, close] of nestings) {
  const deepest = (roomBytes: number): string => {
    const depth = Math.min(Math.floor((roomBytes - 1) / (open.length + close.length)), deepestNesting);
    return `${open.repeat(depth)}1${close.repeat(depth)}`;
  };
  const rows: [place: string, before: string, after: string, answer: object][] = [
    [
      "params",
      `{"jsonrpc":"2.0","id":7,"auth":"${token}","method":"server.ping","params":{"a":`,
      "}}",
      { ...pong, id: 7 },
    ],
    [
      "id",
      `{"jsonrpc":"2.0","auth":"${token}","method":"server.ping","id":`,
      "}",
      invalid(
        `the id is an ${name.slice(0, -1)}, it must be a string of at most 256 characters, a number of at most 2^53 - 1 or null`,
      ),
    ],
    [
      "method",
      `{"jsonrpc":"2.0","id":7,"auth":"${token}","method":`,
      "}",
      { ...invalid(`the method is an ${name.slice(0, -1)}, it must be a string`), id: 7 },
    ],
    [
      "auth",
      '{"jsonrpc":"2.0","id":7,"method":"server.ping","auth":',
      "}",
      { jsonrpc: "2.0", id: 7, error: unauthorized },
    ],
  ];
  for (const [place, before, after, answer] of rows) {
    handle(`answers ${name} in each other, as many as may be, in ${place}`, async () => {
      checkAnswer(await ask(before + deepest(strangerBodyBytes - before.length - after.length) + after), answer);
    });
  }
  handle(`answers as many ${name} as may be that are never closed`, async () => {
    assert.is(JSON.parse((await ask(open.repeat(deepestNesting)))!).error.code, -32700);
  });
  handle(`answers params of ${name} too deep to be said again`, async () => {
    const { id, error } = JSON.parse(
      (await ask(
        `{"jsonrpc":"2.0","id":7,"auth":"${token}","method":"test.echo","params":{"a":${deepest(strangerBodyBytes)}}}`,
      ))!,
    );
    assert.equal([id, error?.code ?? -32603], [7, -32603]); // Bun can say them
  });
}

/** What would take JSON.parse from 0.3 to 4 s, and up to 850 MB: nobody else is answered meanwhile. */
const dear: [what: string, unit: string, isRead: (count: number) => boolean][] = [
  ["arrays in an array", "[],", (count) => count < rpc.maxMembers - 5],
  ["objects in an array", "{},", (count) => count < rpc.maxMembers - 5],
  ["members of objects", '{"a":0},', (count) => 2 * count < rpc.maxMembers - 10],
  ["numbers in an array", "0,", (count) => count < rpc.maxItems - 5],
  ["texts in an array", '"a",', (count) => count < rpc.maxItems - 5],
  ["texts of commas and braces", '",{[:",', (count) => count < rpc.maxItems - 5],
  ["members with long names", `{"${"a".repeat(1000)}":0},`, (count) => count * 1000 < rpc.maxNameBytes],
  ["texts of quotes", '"\\"\\\\",', (count) => count < rpc.maxItems - 5],
];
for (const [what, unit, isRead] of dear) {
  handle(`reads ${what} while it takes no longer than others may wait, and refuses more`, async () => {
    const [before, after] = [
      `{"jsonrpc":"2.0","id":7,"auth":"${token}","method":"server.ping","params":{"a":[`,
      "0]}}",
    ];
    const most = Math.floor((maxBodyBytes - before.length - after.length) / unit.length);
    for (const count of [4000, 16_000, 33_000, 200_000, 210_000, most]) {
      const start = performance.now();
      const answer = JSON.parse((await ask(before + unit.repeat(Math.min(count, most)) + after))!);
      assert.ok(performance.now() - start < busyMs(1000));
      if (isRead(Math.min(count, most))) assert.equal(answer, { ...pong, id: 7 });
      else assert.match(answer.error.message, /^Invalid request: it has more parts than can be read at once/);
    }
  });
}

handle("reads a long text, whatever is in it", async () => {
  for (const unit of [
    "a",
    ",",
    "{",
    "[:",
    '\\"',
    "\\\\",
    "\\n",
    "é",
    "€,",
    "{}".repeat(31),
    "x".repeat(63),
    '\\"'.repeat(32),
  ]) {
    const text = unit.repeat(Math.floor(3_000_000 / Buffer.byteLength(unit)));
    const body = `{"jsonrpc":"2.0","id":7,"auth":"${token}","method":"server.ping","params":{"a":"${text}","b":"${text}\\\\"}}`;
    checkAnswer(await ask(body), { ...pong, id: 7 });
  }
});

handle(
  "reads a large body in pieces: others have their turn between, and what comes after it waits for its call",
  async () => {
    const parts: rpc.Rpc = { methods, isToken: () => true };
    const longer = caller();
    calls.length = 0;
    const large = (at: number) =>
      bytes(JSON.stringify({ ...ping(at), method: "test.note", params: { at, text: "ä".repeat(4 << 20) } }));
    const answers = [1, 2].map((at) => rpc.handleBody(parts, large(at), at === 1 ? longer : caller()));
    let turns = 0;
    let isCalled = false;
    void longer.calling!.then(() => {
      isCalled = true;
    });
    for (; !isCalled; turns++) {
      checkAnswer(textOf(await rpc.handleBody(parts, bytes(JSON.stringify(ping(7))), caller())), { ...pong, id: 7 });
      await new Promise(setImmediate);
    }
    assert.ok(turns >= 8, `there were ${turns} turns`);
    assert.is(longer.calling, undefined);
    assert.equal([calls.length, calls[0]!.at], [1, 1], "the other one has not been read yet");
    for (const [at, answer] of answers.entries()) assert.is(JSON.parse(textOf(await answer)!).id, at + 1);
    assert.is(calls[1]!.at, 2);
  },
);

for (const [what, body, code] of [
  [
    "not UTF-8, at its end",
    Buffer.concat([Buffer.from(`"${"a".repeat(3_000_000)}`), Buffer.from([0xe2, 0x82])]),
    -32700,
  ],
  ["not UTF-8, where a piece ends", Buffer.alloc(3_000_000, Buffer.from([0x22, 0xe2, 0x82])), -32700],
  ["not JSON", Buffer.from(`["${'\\"'.repeat(1_500_000)}`), -32700],
  ["made to take long, at its end", Buffer.from(`["${"a".repeat(3_000_000)}",${"{},".repeat(40_000)}0]`), -32600],
] as const) {
  handle(`refuses a large body that is ${what}, and reads the next one`, async () => {
    const who = caller();
    assert.is(JSON.parse((await ask(body, who))!).error.code, code);
    assert.is(who.calling, undefined);
    const text = "é€😀".repeat(300_000);
    checkAnswer(await ask(JSON.stringify({ ...ping(7), auth: token, params: { text } })), { ...pong, id: 7 });
  });
}

for (const before of [0, 1, 1_048_400, 1_048_401, 1_048_500, 1_048_576, 2_097_152, 2_999_990]) {
  handle(`reads each character of a large body that is no longer ASCII after some ${before} bytes`, async () => {
    const unit = "é€😀";
    const text = `${"a".repeat(before)}${unit.repeat(30)}${"b".repeat(3_000_000 - before)}`;
    calls.length = 0;
    await ask(JSON.stringify({ ...ping(7), auth: token, method: "test.note", params: { at: 0, text } }));
    assert.ok(calls[0]!.text === text);
  });
}

handle("calls what is left of a batch in the next turn, in order, and says so", async () => {
  let turns = 0;
  const rest = handlerOf({ methods, isToken: () => true, isTurnOver: () => ++turns % 3 === 0 });
  const who = caller();
  calls.length = 0;
  const batch = Array.from({ length: 10 }, (_, at) => ({ ...ping(at), method: "test.note", params: { at } }));
  const answer = rest(bytes(JSON.stringify(batch)), who);
  const called = calls.length;
  assert.ok(called > 0 && called < 10, `${called} were called`);
  await who.calling;
  assert.equal(
    calls.map(({ at }) => at),
    [...Array(10).keys()],
  );
  assert.is(who.calling, undefined);
  assert.equal(
    JSON.parse(textOf(await answer)!).map(({ id }: { id: number }) => id),
    [...Array(10).keys()],
  );
});

for (const method of ["test.bytes", "test.bytesLater"]) {
  const overhead = '{"jsonrpc":"2.0","id":7,"result":""}'.length;
  handle(`sends an answer of ${maxBodyBytes - 1} and of ${maxBodyBytes} bytes, ${method}`, async () => {
    for (const size of [maxBodyBytes - 1, maxBodyBytes]) {
      assert.is((await ask(encode({ id: 7, method, params: { bytes: size - overhead } })))!.length, size);
    }
  });
  handle(`puts an error in the place of an answer of ${maxBodyBytes + 1} bytes, ${method}`, async () => {
    const answer = await ask(encode({ id: 7, method, params: { bytes: maxBodyBytes + 1 - overhead } }));
    checkAnswer(answer, tooLarge(7, maxBodyBytes + 1, maxBodyBytes));
  });
  handle(`puts errors in the place of a batch's answers once they fill the frame, ${method}`, async () => {
    const tenMillion = (id: number) => ({ ...ping(id), method, params: { bytes: 10_000_000 } });
    const answer = (await ask(JSON.stringify([tenMillion(1), tenMillion(2), ping(3), tenMillion(4)])))!;
    assert.ok(Buffer.byteLength(answer) <= maxBodyBytes);
    const [first, second, third, fourth] = JSON.parse(answer);
    assert.is(first.result.length, 10_000_000);
    assert.equal(third, { ...pong, id: 3 });
    const room = Number(/room for (\d+)$/.exec(second.error.message)?.[1]);
    assert.equal(
      [second, fourth],
      [2, 4].map((id) => tooLarge(id, 10_000_000 + overhead, room)),
    );
    assert.ok(room > maxBodyBytes - 10_010_000 && room <= maxBodyBytes - 10_000_000);
  });
}

handle("counts an answer's bytes, not its characters", async () => {
  const answer = JSON.parse((await ask(encode({ id: 7, method: "test.echo", params: { a: "€".repeat(5_000_000) } })))!);
  assert.is(answer.result.a.length, 5_000_000);
  const handle = handlerOf({
    methods: new Map([["test.euros", () => "€".repeat(6_000_000)]]),
    isToken: () => true,
  });
  checkAnswer(
    textOf(await handle(bytes(encode({ id: 7, method: "test.euros" })), caller())),
    tooLarge(7, 18_000_036, maxBodyBytes),
  );
});

handle(
  "sends a result that is JSON in pieces as pieces, in a batch, too, silently not at all, and never more than a frame",
  async () => {
    const make = (length: number) =>
      new rpc.JsonPieces(['{"a":[', `"${"€".repeat(length)}"`, "]}"].map((text) => Buffer.from(text)));
    const handle = handlerOf({
      methods: new Map([["test.pieces", ({ length }) => make(length as number)]]),
      isToken: () => true,
    });
    const answerTo = async (request: object) => handle(bytes(encode(request)), caller());
    const request = { id: "x", method: "test.pieces", params: { length: 2 } };
    const answer = await answerTo(request);
    assert.equal((answer as Buffer[]).map(String), [
      '{"jsonrpc":"2.0","id":"x","result":',
      '{"a":[',
      '"€€"',
      "]}",
      "}",
    ]);
    const batch = await handle(bytes(`[${encode(request)},${encode({ ...request, id: 2 })}]`), caller());
    assert.equal(
      JSON.parse(textOf(batch)!),
      ["x", 2].map((id) => ({ jsonrpc: "2.0", id, result: { a: ["€€"] } })),
    );
    assert.is(await answerTo({ ...request, id: undefined }), undefined);
    checkAnswer(
      textOf(await answerTo({ ...request, id: 2, params: { length: 6_000_000 } })),
      tooLarge(2, 18_000_044, maxBodyBytes),
    );
  },
);

handle("keeps the largest batch of errors within a frame, and its small answers", async () => {
  for (const character of ["\u0000", "\ud800", "€"]) {
    const id = character.repeat(rpc.maxIdLength);
    // Leaves no room; what follows has just the bytes reserved for it, or one more.
    const full = { ...ping(1), method: "test.bytes", params: { bytes: maxBodyBytes - 999 * 2050 - 38 } };
    const size = 2048 - Buffer.byteLength(JSON.stringify({ jsonrpc: "2.0", id, result: "" }));
    const fitting = { ...ping(), id, method: "test.bytes", params: { bytes: size } };
    const large = { ...fitting, params: { bytes: size + 1 } };
    const answer = (await ask(
      JSON.stringify([full, ...Array.from({ length: 999 }, (_, at) => (at < 500 ? fitting : large))]),
    ))!;
    assert.ok(Buffer.byteLength(answer) <= maxBodyBytes);
    const replaced = JSON.parse(answer).map(({ error }: { error?: object }) => error !== undefined);
    assert.equal(
      replaced,
      Array.from({ length: 1000 }, (_, at) => at > 500),
    );
  }
});

handle.run();

const auth = suite("handleBody() authorizes");

/** What `auth` and the connection's past make of a request, and of the connection. */
const authorizations: {
  name: string;
  auth?: unknown;
  authenticated?: boolean;
  method?: string;
  params?: object;
  passes: boolean;
  known: boolean;
}[] = [
  { name: "a good token", auth: token, passes: true, known: true },
  { name: "a good token on an authenticated connection", auth: token, authenticated: true, passes: true, known: true },
  { name: "no token on an authenticated connection", authenticated: true, passes: true, known: false },
  {
    name: "null for a token on an authenticated connection",
    auth: null,
    authenticated: true,
    passes: true,
    known: false,
  },
  {
    name: "server.authenticate with a good token",
    method: "server.authenticate",
    params: { token },
    passes: true,
    known: true,
  },
  {
    name: "server.authenticate with a bad token beside the good one",
    method: "server.authenticate",
    params: { token },
    auth: "bad",
    passes: true,
    known: true,
  },
  { name: "no token", passes: false, known: false },
  { name: "null for a token", auth: null, passes: false, known: false },
  { name: "a bad token", auth: "bad", passes: false, known: false },
  { name: "an empty token", auth: "", passes: false, known: false },
  { name: "a token that is a number", auth: 7, passes: false, known: false },
  { name: "a good token in an array", auth: [token], passes: false, known: false },
  { name: "a bad token on an authenticated connection", auth: "bad", authenticated: true, passes: false, known: false },
  { name: "an empty token on an authenticated connection", auth: "", authenticated: true, passes: false, known: false },
  {
    name: "a token that is false on an authenticated connection",
    auth: false,
    authenticated: true,
    passes: false,
    known: false,
  },
  {
    name: "server.authenticate with a bad token",
    method: "server.authenticate",
    params: { token: "bad" },
    passes: false,
    known: false,
  },
  { name: "the version only after a token", auth: "bad", method: "", passes: false, known: false },
];

for (const {
  name,
  auth: given,
  authenticated = false,
  method = "server.ping",
  params,
  passes,
  known,
} of authorizations) {
  auth(`${passes ? "" : "no "}request with ${name}`, async () => {
    const who = { ...caller(), authenticated };
    const answer = JSON.parse((await ask(encode({ id: 7, method, params, auth: given }), who))!);
    assert.equal(answer.error, passes ? undefined : unauthorized);
    assert.is(answer.id, 7);
    assert.is(who.known, known);
  });
}

auth("nothing more of what it refuses than to say so", async () => {
  for (const wrong of [{ jsonrpc: "1.0" }, { method: 7 }, { method: "x" }, { params: [] }, {}]) {
    checkAnswer(await ask(encode({ id: 7, method: "server.ping", ...wrong, auth: "bad" })), {
      jsonrpc: "2.0",
      id: 7,
      error: unauthorized,
    });
  }
});

auth("what follows server.authenticate on the connection, also in one batch", async () => {
  const who = caller();
  const authenticate = { ...ping(1), method: "server.authenticate", params: { token }, auth: undefined };
  const bare = { ...ping(2), auth: undefined };
  const refused = { jsonrpc: "2.0", id: 2, error: unauthorized };
  const answers = [refused, { jsonrpc: "2.0", id: 1, result: { authenticated: true } }, { ...pong, id: 2 }];
  checkAnswer(await ask(JSON.stringify([bare, authenticate, bare]), who), answers);
  checkAnswer(await ask(JSON.stringify(bare), who), { ...pong, id: 2 });
  checkAnswer(await ask(JSON.stringify(bare), caller()), refused);
});

auth("no request without telling of it", async () => {
  const refused: Caller[] = [];
  const handle = handlerOf({
    methods,
    isToken: (given) => given === token,
    onUnauthorized: (who) => void refused.push(who),
  });
  const who = caller();
  const send = (request: unknown) => handle(bytes(JSON.stringify(request)), who);
  send([ping(1), { ...ping(2), auth: "bad" }, { ...ping(), auth: "bad" }]);
  send({ ...ping(1), auth: undefined });
  send(ping(1));
  assert.is(refused.length, 3);
  assert.ok(refused.every((one) => one === who));
});

auth.run();

const oversize = suite("oversizeAnswer()");

oversize("names both sizes", () => {
  const message = "Cannot read frame: its body has 83886080 bytes, at most 16777215 are accepted";
  assert.is(
    rpc.oversizeAnswer(83_886_080, maxBodyBytes),
    `{"jsonrpc":"2.0","id":null,"error":{"code":-32600,"message":"${message}"}}`,
  );
});

oversize("tells a stranger what lifts the limit", () => {
  const { error } = JSON.parse(rpc.oversizeAnswer(2_000_000, strangerBodyBytes));
  assert.is(error.message, "Cannot read frame: its body has 2000000 bytes, at most 1048576 are accepted");
  assert.is(error.data.hint, "call server.authenticate first: after it 16777215 are accepted");
});

oversize.run();

const params = suite("params:");

const string = (given: Params) => rpc.stringParam(given, "p");
const emptyString = (given: Params) => rpc.stringParam(given, "p", { empty: true });
const optionalString = (given: Params) => rpc.optionalStringParam(given, "p");
const integer = (given: Params) => rpc.integerParam(given, "p", { min: 1, max: 9 });
const integerOr5 = (given: Params) => rpc.integerParam(given, "p", { min: 1, max: 9, default: 5 });
const boolean = (given: Params) => rpc.booleanParam(given, "p", true);
const list = (given: Params) => rpc.stringListParam(given, "p");
const map = (given: Params) => rpc.stringMapParam(given, "p");
const absent = Symbol("absent");

/** A parameter to what a helper reads, or to how its message ends after `Cannot use parameter "p`. */
const readings: [read: (given: Params) => unknown, given: unknown, value: unknown][] = [
  [string, "x", "x"],
  [emptyString, "x", "x"],
  [emptyString, "", ""],
  [optionalString, "x", "x"],
  [optionalString, "", ""],
  [optionalString, absent, undefined],
  [optionalString, null, undefined],
  [integer, 1, 1],
  [integer, 2, 2],
  [integer, 8, 8],
  [integer, 9, 9],
  [integerOr5, absent, 5],
  [integerOr5, null, 5],
  [integerOr5, 1, 1],
  [boolean, true, true],
  [boolean, false, false],
  [boolean, absent, true],
  [boolean, null, true],
  [list, absent, []],
  [list, null, []],
  [list, [], []],
  [list, ["", "a"], ["", "a"]],
  [map, absent, {}],
  [map, null, {}],
  [map, {}, {}],
  [map, { A: "", "b c": "d" }, { A: "", "b c": "d" }],
];

const refusals: [read: (given: Params) => unknown, given: unknown, ending: string][] = [
  [string, absent, '": it is absent, it must be a non-empty string'],
  [string, null, '": it is null, it must be a non-empty string'],
  [string, "", '": it is "", it must be a non-empty string'],
  [string, 5, '": it is 5, it must be a non-empty string'],
  [string, ["x"], '": it is an array, it must be a non-empty string'],
  [string, { x: 1 }, '": it is an object, it must be a non-empty string'],
  [emptyString, absent, '": it is absent, it must be a string'],
  [emptyString, true, '": it is true, it must be a string'],
  [optionalString, 0, '": it is 0, it must be a string'],
  [integer, absent, '": it is absent, it must be an integer from 1 to 9'],
  [integer, 0, '": it is 0, it must be an integer from 1 to 9'],
  [integer, 10, '": it is 10, it must be an integer from 1 to 9'],
  [integer, 1.5, '": it is 1.5, it must be an integer from 1 to 9'],
  [integer, Infinity, '": it is Infinity, it must be an integer from 1 to 9'],
  [integer, "5", '": it is "5", it must be an integer from 1 to 9'],
  [integerOr5, 0, '": it is 0, it must be an integer from 1 to 9'],
  [integerOr5, "x".repeat(200), `": it is "${"x".repeat(120)}…", it must be an integer from 1 to 9`],
  [boolean, 1, '": it is 1, it must be true or false'],
  [boolean, "false", '": it is "false", it must be true or false'],
  [list, "a", '": it is "a", it must be an array of strings'],
  [list, { 0: "a", length: 1 }, '": it is an object, it must be an array of strings'],
  [list, ["a", 5], '[1]": it is 5, it must be a string'],
  [list, [null], '[0]": it is null, it must be a string'],
  [map, ["a"], '": it is an array, it must be an object with string values'],
  [map, "a", '": it is "a", it must be an object with string values'],
  [map, { A: "a", B: 5 }, '.B": it is 5, it must be a string'],
  [map, { ["x".repeat(200)]: null }, `.${"x".repeat(118)}…": it is null, it must be a string`],
];

const nameOf = (given: unknown) => (given === absent ? "an absent one" : JSON.stringify(given).slice(0, 40));

for (const [read, given, value] of readings) {
  params(`${read.name} reads ${nameOf(given)}`, () => {
    assert.equal(withoutPrototype(read(given === absent ? {} : { p: given })), withoutPrototype(value));
  });
}

for (const [read, given, ending] of refusals) {
  params(`${read.name} refuses ${given === Infinity ? "Infinity" : nameOf(given)}`, () => {
    assert.throws(() => read(given === absent ? {} : { p: given }), isInvalid(`Cannot use parameter "p${ending}`));
  });
}

params("names of every object's members are absent", () => {
  for (const name of ["__proto__", "constructor", "toString", "hasOwnProperty"]) {
    assert.is(rpc.optionalStringParam({}, name), undefined);
    assert.equal(rpc.stringListParam({}, name), []);
    assert.is(rpc.booleanParam({}, name, false), false);
    const message = `Cannot use parameter "${name}": it is absent, it must be a non-empty string`;
    assert.throws(() => rpc.stringParam({}, name), isInvalid(message));
  }
});

params("names of every object's members are just names", () => {
  const given = JSON.parse('{"env":{"__proto__":"a","constructor":"b","hasOwnProperty":"c"},"__proto__":"d"}');
  const env = rpc.stringMapParam(given, "env");
  assert.is(Object.getPrototypeOf(env), null);
  assert.equal(Object.entries(env), [
    ["__proto__", "a"],
    ["constructor", "b"],
    ["hasOwnProperty", "c"],
  ]);
  assert.is(rpc.stringParam(given, "__proto__"), "d");
});

params("knownParams takes what it knows, and names both sides of anything else", () => {
  rpc.knownParams({}, []);
  rpc.knownParams({ id: "a", data: null }, ["id", "data"]);
  for (const [given, names, words] of [
    [
      { command: "pwd", cwdd: "/" },
      ["command", "cwd"],
      'parameter "cwdd": this method does not know it, it takes command, cwd',
    ],
    [{ cwdd: undefined }, ["cwd"], 'parameter "cwdd": this method does not know it, it takes cwd'],
    [{ a: 1, b: 2 }, [], 'parameter "a": this method does not know it, it takes none'],
    [{ [long]: 1 }, [], `parameter "${"x".repeat(120)}…": this method does not know it, it takes none`],
    [JSON.parse('{"__proto__":1}'), ["id"], 'parameter "__proto__": this method does not know it, it takes id'],
    [{ constructor: 1 }, ["id"], 'parameter "constructor": this method does not know it, it takes id'],
  ] as [Params, string[], string][]) {
    assert.throws(() => rpc.knownParams(given, names), isInvalid(`Cannot use ${words}`));
  }
});

params("limitParam takes 0 and negative numbers, and what is absent, for the default", () => {
  const limit = (p: unknown) => rpc.limitParam({ p }, "p", { max: 9, default: 5 });
  assert.equal([undefined, null, 0, -0, -1, Number.MIN_SAFE_INTEGER].map(limit), [5, 5, 5, 5, 5, 5]);
  assert.equal([1, 5, 9].map(limit), [1, 5, 9]);
  for (const value of [10, 0.5, -0.5, "1", true, {}, -Infinity]) {
    assert.throws(() => limit(value), /Cannot use parameter "p": it is .*, it must be an integer/);
  }
});

params("invalidParam makes the failure for a check of the method's own", () => {
  const failure = rpc.invalidParam("encoding", "latin1", '"utf8" or "base64"');
  assert.ok(isInvalid('Cannot use parameter "encoding": it is "latin1", it must be "utf8" or "base64"')(failure));
});

params.run();

function create(): Handler {
  return handlerOf({ methods, isToken: (given) => given === token });
}

type Handler = (body: Uint8Array, who: Caller) => rpc.Answer | Promise<rpc.Answer>;

function handlerOf(parts: rpc.Rpc): Handler {
  return (body, who) => rpc.handleBody(parts, body, who);
}

function ask(body: string | Uint8Array, who: Caller = caller()): string | undefined | Promise<string | undefined> {
  const answer = shared(typeof body === "string" ? bytes(body) : body, who);
  return answer instanceof Promise ? answer.then(textOf) : textOf(answer);
}

function textOf(answer: rpc.Answer): string | undefined {
  return typeof answer === "object" ? String(Buffer.concat(answer)) : answer;
}

function bytes(body: string): Uint8Array {
  return new TextEncoder().encode(body);
}

function caller(): Caller {
  const peer: Peer = { id: "c1", send: () => true, unsentBytes: 0, onDrain: () => () => {}, onClose: () => () => {} };
  return { peer, authenticated: false, known: false };
}

/** A request's JSON, with version and a good token unless the members say otherwise. */
function encode(members: object): string {
  return JSON.stringify({ jsonrpc: "2.0", auth: token, ...members });
}

function ping(id?: number | string): Record<string, unknown> {
  return { jsonrpc: "2.0", id, method: "server.ping", auth: token };
}

function pings(count: number): Record<string, unknown>[] {
  return Array.from({ length: count }, (_, id) => ping(id));
}

function invalid(why: string) {
  return { jsonrpc: "2.0", id: null, error: { code: -32600, message: `Invalid request: ${why}` } };
}

function parseError(reason: string) {
  return { jsonrpc: "2.0", id: null, error: { code: -32700, message: "Parse error", data: { reason } } };
}

function tooLarge(id: number, bytes: number, room: number) {
  const message = `Cannot send answer: it has ${bytes} bytes, its frame has room for ${room}`;
  return { jsonrpc: "2.0", id, error: { code: -32603, message } };
}

function osError(): Error {
  return Object.assign(new Error("ENOENT: no such file or directory, open '/x'"), {
    code: "ENOENT",
    errno: -2,
    path: "/x",
  });
}

function isInvalid(message: string): (error: unknown) => boolean {
  return (error) => error instanceof Failure && error.code === errorCodes.invalidParams && error.message === message;
}

function withoutPrototype(value: unknown): unknown {
  return typeof value === "object" && value !== null && !Array.isArray(value) ? { ...value } : value;
}

function checkAnswer(text: string | undefined, answer: object | undefined): void {
  assert.equal(text === undefined ? undefined : JSON.parse(text), answer);
}
