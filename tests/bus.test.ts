/**
 * bus.ts with a real bus; beside busctl, whose values in bytes are to be the same; and with peers that do what none should.
 *
 * What systemd makes of it, the tests on booted hosts show.
 */

import { spawn, spawnSync } from "node:child_process";
import { createServer } from "node:net";
import type { Socket } from "node:net";
import { join } from "node:path";
import { suite } from "uvu";
import { callBus, getProperty, unitObject } from "../bus.ts";
import type { BusCall } from "../bus.ts";
import { withDirectory } from "./daemon.ts";
import { createRandom, mutateBytes, pick } from "./fuzz/random.ts";
import * as assert from "uvu/assert";

const has = (command: string): boolean => spawnSync("sh", ["-c", `command -v ${command}`]).status === 0;
const needs = (test: typeof bus, command: string): typeof bus.skip => (has(command) ? test : test.skip);

const withPath = (use: (path: string) => Promise<void>): Promise<void> =>
  withDirectory(({ directory }) => use(join(directory, "bus")));

/** Who accepts, and then does something. */
async function withServer(accept: (socket: Socket) => void, use: (path: string) => Promise<void>): Promise<void> {
  await withPath(async (path) => {
    const sockets: Socket[] = [];
    const server = createServer((socket) => (sockets.push(socket.on("error", () => {})), accept(socket)));
    await new Promise<void>((done) => server.listen(path, done));
    try {
      await use(path);
    } finally {
      for (const socket of sockets) socket.destroy();
      await new Promise((done) => server.close(done));
    }
  });
}

const bus = suite("callBus() with dbus-daemon");
const ofBus = (method: string, signature = "", ...values: unknown[]): BusCall => ({
  service: "DBus",
  owner: "DBus",
  method,
  signature,
  values,
});

async function withBus(use: (path: string) => Promise<void>): Promise<void> {
  await withPath(async (path) => {
    const daemon = spawn(
      "dbus-daemon",
      ["--session", "--nofork", "--nosyslog", "--print-address=1", `--address=unix:path=${path}`],
      { stdio: ["ignore", "pipe", "inherit"] },
    );
    const ended = new Promise((done) => daemon.once("exit", done));
    try {
      await new Promise((done) => daemon.stdout.once("data", done));
      await use(path);
    } finally {
      daemon.kill("SIGKILL");
      await ended;
    }
  });
}

needs(bus, "dbus-daemon")("calls methods and reads properties, all over one connection, each with its own answer", () =>
  withBus(async (path) => {
    const answers = await callBus(
      path,
      [
        ofBus("GetConnectionUnixUser", "s", "org.freedesktop.DBus"),
        ofBus("NameHasOwner", "s", "org.freedesktop.DBus"),
        ofBus("NameHasOwner", "s", "no.such.Name"),
        ofBus("ListNames"),
        ofBus("RequestName", "su", "org.example.Name", 4),
        ofBus("NoSuchMethod"),
        ofBus("GetId"),
        { ...getProperty("DBus", ""), values: ["org.freedesktop.DBus", "Interfaces"] },
      ],
      5000,
    );
    const [user, isThere, isNot, names, got, refused, id, interfaces] = answers.map(
      ({ value, problem }) => problem ?? value,
    );
    assert.equal([user, isThere, isNot, got], [process.getuid!(), true, false, 1]);
    assert.ok(
      (names as string[]).includes("org.freedesktop.DBus") && (names as string[]).some((name) => /^:\d/.test(name)),
      String(names),
    );
    assert.match(refused as string, /NoSuchMethod/);
    assert.match(id as string, /^[0-9a-f]{32}$/);
    assert.ok(Array.isArray(interfaces) && interfaces.every((name) => typeof name === "string"), String(interfaces));
  }),
);

needs(bus, "dbus-daemon")("says in the bus's words what is not there", () =>
  withBus(async (path) => {
    const [answer] = await callBus(path, [{ service: "login1", method: "ListUsers" }], 5000);
    assert.match(answer!.problem!, "org.freedesktop.login1");
  }),
);

const values = suite("values in bytes");
const call: BusCall = { service: "x", method: "M" };

/** What a peer sees of a message: all of it, and of that its values. */
interface Seen {
  bytes: Buffer;
  body: Buffer;
}

/** The whole messages in a buffer, and the bytes after them. */
function messagesIn(bytes: Buffer): { seen: Seen[]; rest: Buffer } {
  const seen: Seen[] = [];
  let rest = bytes;
  for (;;) {
    const bodyAt = rest.length < 16 ? Infinity : 16 + Math.ceil(rest.readUInt32LE(12) / 8) * 8;
    const end = bodyAt === Infinity ? Infinity : bodyAt + rest.readUInt32LE(4);
    if (end > rest.length) return { seen, rest };
    seen.push({ bytes: rest.subarray(0, end), body: rest.subarray(bodyAt, end) });
    rest = rest.subarray(end);
  }
}

/** A return for a call, written by hand: its serial, the signature of its values, and these; or an error of that name. The fields: 5 u, 8 g, 4 s. */
function returnOf(serial: number, signature: string, body: Buffer, isBig = false, error = ""): Buffer {
  const u32 = (value: number): Buffer => {
    const bytes = Buffer.alloc(4);
    isBig ? bytes.writeUInt32BE(value) : bytes.writeUInt32LE(value);
    return bytes;
  };
  const fields = Buffer.concat([
    Buffer.from([5, 1]),
    Buffer.from("u\0"),
    u32(serial),
    Buffer.from([8, 1]),
    Buffer.from("g\0"),
    Buffer.from([signature.length]),
    Buffer.from(`${signature}\0`),
  ]);
  const name =
    error === ""
      ? Buffer.alloc(0)
      : Buffer.concat([
          Buffer.alloc(-fields.length & 7),
          Buffer.from([4, 1]),
          Buffer.from("s\0"),
          u32(error.length),
          Buffer.from(`${error}\0`),
        ]);
  const all = Buffer.concat([fields, name]);
  return Buffer.concat([
    Buffer.from([isBig ? 0x42 : 0x6c, error === "" ? 2 : 3, 1, 1]),
    u32(body.length),
    u32(77),
    u32(all.length),
    all,
    Buffer.alloc(-all.length & 7),
    body,
  ]);
}

const stringOf = (text: string): Buffer =>
  Buffer.concat([Buffer.from([text.length, 0, 0, 0]), Buffer.from(`${text}\0`)]);

/** Lets in whoever comes, and hands over each message with what answers it. */
function withPeer(take: (seen: Seen, socket: Socket) => void, use: (path: string) => Promise<void>): Promise<void> {
  return withServer((socket) => {
    let rest: Buffer = Buffer.alloc(0);
    let isOpen = false;
    socket.on("data", (chunk) => {
      rest = Buffer.concat([rest, chunk]);
      for (let end; !isOpen && (end = rest.indexOf("\r\n")) >= 0; rest = rest.subarray(end + 2)) {
        const line = rest.toString("latin1", 0, end).replace(/^\0/, "");
        if (line === "BEGIN") isOpen = true;
        else
          socket.write(
            line === "NEGOTIATE_UNIX_FD"
              ? "ERROR\r\n"
              : line === "AUTH EXTERNAL"
                ? "DATA\r\n"
                : `OK ${"0".repeat(32)}\r\n`,
          );
      }
      if (!isOpen) return;
      const found = messagesIn(rest);
      rest = found.rest;
      for (const seen of found.seen) take(seen, socket);
    });
  }, use);
}

/** The values of the second message that a client sends: the first is its Hello. */
async function bodyBy(client: (path: string) => Promise<unknown>): Promise<string> {
  let found = "";
  await withPeer(
    ({ bytes, body }, socket) => {
      const serial = bytes.readUInt32LE(8);
      if (bytes.includes("Hello\0")) return void socket.write(returnOf(serial, "s", stringOf(":1.1")));
      found = body.toString("hex");
      socket.write(returnOf(serial, "", Buffer.alloc(0)));
    },
    async (path) => void (await client(path)),
  );
  return found;
}

const rows: [signature: string, values: unknown[], words: string][] = [
  [
    "ssa(sv)a(sa(sv))",
    [
      "a.scope",
      "fail",
      [
        ["PIDs", ["au", [1, 70000]]],
        ["TimeoutStopUSec", ["t", 10_000_000]],
        ["CollectMode", ["s", "inactive-or-failed"]],
        ["OOMPolicy", ["s", "continue"]],
      ],
      [],
    ],
    "a.scope fail 4 PIDs au 2 1 70000 TimeoutStopUSec t 10000000 CollectMode s inactive-or-failed OOMPolicy s continue 0",
  ],
  [
    "a(sa(sv))",
    [
      [
        [
          "aux",
          [
            ["X", ["b", true]],
            ["Yy", ["v", ["y", 7]]],
          ],
        ],
        ["b", []],
      ],
    ],
    "2 aux 2 X b true Yy v y 7 b 0",
  ],
  ["ubb", [4294967294, true, false], "4294967294 true false"],
  ["ytsogy", [1, 2 ** 40 + 3, "häuser", "/a/b", "a(sv)", 9], "1 1099511627779 häuser /a/b a(sv) 9"],
  ["yatyat", [1, [], 2, [5]], "1 0 2 1 5"],
  [
    "ya(ys)as",
    [
      3,
      [
        [1, "x"],
        [2, "yz"],
      ],
      ["", "abc", "d"],
    ],
    "3 2 1 x 2 yz 3  abc d",
  ],
];
for (const [signature, given, words] of rows) {
  needs(values, "busctl")(`are those of busctl: ${signature}`, async () => {
    const args = (path: string) => [
      `--address=unix:path=${path}`,
      "call",
      "org.freedesktop.x",
      "/org/freedesktop/x",
      "org.freedesktop.x.Manager",
      "M",
      signature,
      ...words.split(" "),
    ];
    const theirs = await bodyBy(
      (path) =>
        new Promise((done) =>
          spawn("busctl", args(path), { stdio: ["ignore", "ignore", "inherit"] }).once("exit", done),
        ),
    );
    const ours = await bodyBy((path) => callBus(path, [{ ...call, signature, values: given }], 5000));
    assert.ok(theirs.length > 16, theirs);
    assert.is(ours, theirs);
  });
}

/** Takes a call, the first after the greeting, and answers with these bytes. */
async function answerBy(
  answer: (serial: number) => Buffer,
  write = (socket: Socket, bytes: Buffer): void => void socket.write(bytes),
): Promise<unknown> {
  let result: unknown;
  await withPeer(
    ({ bytes }, socket) => bytes.includes("Hello\0") || write(socket, answer(bytes.readUInt32LE(8))),
    async (path) => void ([result] = await callBus(path, [call], 500)),
  );
  return result;
}

values("are read in both byte orders, and in pieces", async () => {
  const little = Buffer.from(
    "01000000" + "00000000" + "0200000001000000" + "05000000" + "07000000" + "02000000" + "616200",
    "hex",
  );
  const big = Buffer.from(
    "00000001" + "00000000" + "0000000100000002" + "00000005" + "00000007" + "00000002" + "616200",
    "hex",
  );
  for (const [body, isBig] of [
    [little, false],
    [big, true],
  ] as const)
    assert.equal(await answerBy((serial) => returnOf(serial, "(btuas)", body, isBig)), {
      value: [true, 2 ** 32 + 2, 5, ["ab"]],
    });
  const inPieces = (socket: Socket, bytes: Buffer): void => {
    let at = 0;
    const timer = setInterval(
      () => (at < bytes.length ? socket.write(bytes.subarray(at, (at += 5))) : clearInterval(timer)),
      2,
    );
  };
  assert.equal(await answerBy((serial) => returnOf(serial, "s", stringOf("a text")), inPieces), { value: "a text" });
});

values("of an error are its text; its name where it has none; and what systemd's tools say of a refusal", async () => {
  const of = (name: string, text: string) =>
    answerBy((serial) =>
      returnOf(serial, text === "" ? "" : "s", text === "" ? Buffer.alloc(0) : stringOf(text), false, name),
    );
  assert.equal(await of("org.freedesktop.systemd1.UnitExists", "Unit a.scope already exists."), {
    problem: "Unit a.scope already exists.",
  });
  assert.equal(await of("org.freedesktop.DBus.Error.NoReply", ""), { problem: "org.freedesktop.DBus.Error.NoReply" });
  assert.equal(await of("org.freedesktop.DBus.Error.AccessDenied", "Permission denied"), { problem: "Access denied" });
});

values("that were damaged at random end each call, with a value or in words", async () => {
  const random = createRandom(1);
  const body = Buffer.from("0100000000000000020000000100000005000000070000000200000061620000", "hex");
  const outcomes = new Set<string>();
  const damaged = (serial: number): Buffer => {
    const signature = pick(random, ["btuas", "v", "s", "as", "a(sv)", "aas", "(u(us))", "g", "ay"]);
    return mutateBytes(random, returnOf(serial, signature, body, random(2) === 0, pick(random, ["", "a.b.Error"])));
  };
  await withPeer(
    ({ bytes }, socket) => bytes.includes("Hello\0") || socket.end(damaged(bytes.readUInt32LE(8))),
    async (path) => {
      for (let i = 0; i < 100; i++) {
        for (const [answer] of await Promise.all(Array.from({ length: 20 }, () => callBus(path, [call], 300)))) {
          outcomes.add(
            answer!.problem === undefined
              ? "value"
              : answer!.problem.replace(
                  /^"[^"]*" (sent what cannot be read|closed the connection|did not answer).*/s,
                  "$1",
                ),
          );
        }
      }
    },
  );
  for (const outcome of ["value", "sent what cannot be read", "closed the connection"])
    assert.ok(outcomes.has(outcome), outcome);
});

values("of a type that is not known are no answer, whatever they say of their length", async () => {
  for (const [signature, hex] of [
    ["d", "0000000000000000"],
    ["a()", "0800000000000000" + "00".repeat(8)],
    ["a{sv}", "0800000000000000" + "00".repeat(8)],
    ["u", ""],
    ["av", "ffffffff"],
  ] as const) {
    const { problem } = (await answerBy((serial) => returnOf(serial, signature, Buffer.from(hex, "hex")))) as {
      problem: string;
    };
    assert.match(problem, /^"\/.*\/bus" sent what cannot be read: /, signature);
  }
});

const wrong = suite("callBus() with peers that are none");

for (const [name, accept, expected] of [
  ["are silent", () => {}, /^"\/.*" did not answer within 200 ms$/],
  ["close the connection", (socket) => socket.end(), /^"\/.*" closed the connection$/],
  ["let nobody in", (socket) => socket.write("REJECTED EXTERNAL\r\n"), /^"\/.*" does not let us in$/],
  [
    "let us in, and leave",
    (socket) => socket.once("data", () => socket.write("OK 00\r\n", () => setTimeout(() => socket.end(), 20))),
    /^"\/.*" closed the connection$/,
  ],
  [
    "talk nonsense",
    (socket) => socket.write(`OK 00\r\n${"nonsense ".repeat(100)}`),
    /^"\/.*" did not answer within 200 ms$/,
  ],
] as [string, (socket: Socket) => void, RegExp][]) {
  wrong(`that ${name}: each call is told`, () =>
    withServer(accept, async (path) => {
      const answers = await callBus(path, [call, call], 200);
      assert.is(answers.length, 2);
      for (const answer of answers) assert.match(answer.problem!, expected);
    }),
  );
}

wrong("that are not there: says so, in words", () =>
  withPath(async (path) => {
    assert.equal(await callBus(path, [call], 200), [
      { problem: `"${path}" cannot be connected to: no such file or directory (ENOENT)` },
    ]);
  }),
);

wrong("that speak of something else before they answer", async () => {
  // a signal has no serial that it replies to; its values are of types that are not known
  const signal = (bytes: Buffer): Buffer => (bytes.writeUInt8(4, 1), bytes.writeUInt8(9, 16), bytes);
  const answer = await answerBy((serial) =>
    Buffer.concat([signal(returnOf(serial, "sa{sv}as", Buffer.alloc(40, 1))), returnOf(serial, "s", stringOf("1"))]),
  );
  assert.equal(answer, { value: "1" });
});

wrong("that answer one call of two: that one has its answer, the other is told", async () => {
  await withPeer(
    ({ bytes }, socket) =>
      void (bytes.includes("First\0") && socket.write(returnOf(bytes.readUInt32LE(8), "s", stringOf("1")))),
    async (path) => {
      const [first, second] = await callBus(path, [{ ...call, method: "First" }, call], 200);
      assert.equal(first, { value: "1" });
      assert.match(second!.problem!, /did not answer/);
    },
  );
});

wrong("keep nobody waiting when they have answered", async () => {
  const timers = () => process.getActiveResourcesInfo().filter((kind) => kind === "Timeout").length;
  const before = timers();
  await withPeer(
    ({ bytes }, socket) => void socket.write(returnOf(bytes.readUInt32LE(8), "s", stringOf("1"))),
    async (path) => {
      assert.equal(await callBus(path, [call], 5000), [{ value: "1" }]);
      assert.is(timers(), before);
    },
  );
});

const objects = suite("unitObject()");
objects("is the path that systemd has for a unit", () => {
  assert.is(unitObject("user@1000.service"), "/unit/user_401000_2eservice");
  assert.is(unitObject("sshd@7-10.0.0.1:22.service"), "/unit/sshd_407_2d10_2e0_2e0_2e1_3a22_2eservice");
});

for (const test of [bus, values, wrong, objects]) test.run();
