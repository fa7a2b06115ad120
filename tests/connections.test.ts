/** Connections over streams of a test's own, with a table of bodies in the place of methods: nothing here listens. */

import { Duplex } from "node:stream";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import type { Connections } from "../connections.ts";
import { acceptConnection, closeAll, createConnections, maxStrangers, noteShortage } from "../connections.ts";
import { maxBodyBytes } from "../frame.ts";
import type { Answer, Caller } from "../rpc.ts";
import { frameOf, messagesIn, until } from "./daemon.ts";

/** The other end of a connection, as its client sees it. */
interface Client {
  socket: Duplex;
  /** What it has taken. */
  received(): Buffer;
  /** From now on it takes nothing; or all that waits, and whatever comes. */
  stall(): void;
  takeAll(): void;
  send(bytes: Buffer | string): void;
}

function clientOf(connections: Connections): Client {
  const chunks: Buffer[] = [];
  let isStalled = false;
  let held: (() => void) | undefined;
  const socket = new Duplex({
    allowHalfOpen: true,
    highWaterMark: 1 << 20,
    read() {},
    write(chunk: Buffer, _encoding, done) {
      chunks.push(Buffer.from(chunk)); // as the kernel: it is the sender's again
      if (isStalled) held = done;
      else done();
    },
  });
  acceptConnection(connections, socket);
  return {
    socket,
    received: () => Buffer.concat(chunks),
    stall: () => {
      isStalled = true;
    },
    takeAll: () => {
      isStalled = false;
      held?.();
    },
    send: (bytes) => void socket.push(bytes),
  };
}

/** Bodies and what they are answered with; "token" makes its connection a known one, and any other is said again. */
const answers: Record<string, (caller: Caller) => Answer | Promise<Answer>> = {
  '"token"': (caller) => {
    caller.known = true;
    return '"known"';
  },
  '"nothing"': () => undefined,
  '"later"': () => new Promise((done) => setTimeout(done, 20, '"late"')),
  '"pieces"': () => ['{"a":', "1}"].map((text) => Buffer.from(text)),
  '"throw"': () => {
    throw new Error("a bug");
  },
};

interface Site {
  connections: Connections;
  log: string[];
  bodies: string[];
  callers: Caller[];
}

function create({ descriptors = Infinity } = {}): Site {
  const site = { log: [] as string[], bodies: [] as string[], callers: [] as Caller[] };
  const handle = (body: Buffer, caller: Caller): Answer | Promise<Answer> => {
    const text = String(body);
    site.bodies.push(text);
    site.callers.push(caller);
    return Object.hasOwn(answers, text) ? answers[text]!(caller) : text;
  };
  const connections: Connections = createConnections(
    handle,
    (line) => void site.log.push(line),
    80,
    () => connections.open.size < descriptors,
  );
  return { connections, ...site };
}

const settled = (): Promise<void> => new Promise(setImmediate);
const isClosed = ({ socket }: Client) => until("it is closed", () => socket.destroyed);

const connects = suite("acceptConnection()");

connects("names each connection, and logs its beginning and end", async () => {
  const { connections, log, callers } = create();
  const clients = [clientOf(connections), clientOf(connections)];
  for (const client of clients) client.send(frameOf("a"));
  await settled();
  assert.equal(
    callers.map(({ peer }) => peer.id),
    ["c1", "c2"],
  );
  for (const { socket } of clients) socket.destroy();
  await settled();
  assert.equal(log, [
    "[Server] New connection from: @",
    "[Server] New connection from: @",
    "[Server] Connection closed: @",
    "[Server] Connection closed: @",
  ]);
  assert.is(connections.open.size, 0);
});

for (const framing of ["native", "lines"] as const) {
  connects(`answers each body in the framing of its peer, at once, late, in pieces or not: ${framing}`, async () => {
    const { connections } = create();
    const client = clientOf(connections);
    const encode = (body: string): Buffer =>
      framing === "native" ? frameOf(JSON.parse(body)) : Buffer.from(`${body}\n`);
    client.send(Buffer.concat(['"later"', '"nothing"', '"a"', '"pieces"', '"b"'].map(encode)));
    const expected = ["a", { a: 1 }, "b", "late"];
    const bytes = Buffer.concat(expected.map((message) => encode(JSON.stringify(message))));
    await until("all is answered", () => client.received().length === bytes.length);
    assert.is(String(client.received()), String(bytes));
  });
}

connects("ends its side when the peer has ended its own, but not before all is answered", async () => {
  const { connections } = create();
  const client = clientOf(connections);
  client.send(frameOf("later"));
  client.socket.push(null);
  await until("it has ended", () => client.socket.writableFinished);
  assert.equal(messagesIn(client.received()), ["late"]);
});

connects("ends only the one connection that something goes wrong with, and logs it", async () => {
  const { connections, log } = create();
  const [bad, good] = [clientOf(connections), clientOf(connections)];
  bad.send(frameOf("throw"));
  await isClosed(bad);
  good.send(frameOf("a"));
  await settled();
  assert.equal(messagesIn(good.received()), ["a"]);
  assert.is(
    log.filter((line) => /^\[Server\] Internal error on c1, which is closed: Error: a bug/.test(line)).length,
    1,
  );
});

connects("answers a body over the limit with its size, and goes on; beyond 64 MiB it closes", async () => {
  const { connections } = create();
  const client = clientOf(connections);
  client.send(Buffer.concat([Buffer.from([0, 0x10, 0, 1]), Buffer.alloc(0x100001), frameOf("a")]));
  await settled();
  const [refusal, next] = messagesIn(client.received());
  assert.match(refusal.error.message, /its body has 1048577 bytes, at most 1048576 are accepted/);
  assert.is(next, "a");
  client.send(Buffer.from([0xff, 0, 0, 0]));
  await isClosed(client);
  assert.match(String(client.received()), /its body has 4278190080 bytes/);
});

connects("raises the limit with a good token, also for a frame that begins in the same chunk", async () => {
  const { connections, bodies } = create();
  const client = clientOf(connections);
  const bytes = Buffer.concat([frameOf("token"), frameOf("x".repeat(2 << 20))]);
  client.send(bytes.subarray(0, 65_536));
  await settled();
  client.send(bytes.subarray(65_536));
  await settled();
  assert.is(bodies[1]?.length, (2 << 20) + 2);
});

connects("refuses in words when there is no descriptor for more, and logs that once", async () => {
  const { connections, log } = create({ descriptors: 1 });
  const first = clientOf(connections);
  for (let i = 0; i < 3; i++) {
    const client = clientOf(connections);
    const [{ id, error }] = messagesIn(client.received());
    assert.equal([id, error.code, error.data], [null, -32603, { errno: "EMFILE" }]);
    assert.match(error.message, /^Cannot accept a connection: all 80 descriptors .* are in use/);
    await isClosed(client);
  }
  first.send(frameOf("a"));
  await settled();
  assert.equal(messagesIn(first.received()), ["a"]);
  assert.is(log.filter((line) => line.includes("short of something")).length, 1);
});

connects.run();

const strangers = suite("strangers");

strangers("are few: the oldest makes room, and who has shown a token never does", async () => {
  const { connections } = create();
  const known = clientOf(connections);
  known.send(frameOf("token"));
  await settled();
  const clients = Array.from({ length: maxStrangers }, () => clientOf(connections));
  assert.is(connections.open.size, maxStrangers + 1);
  const late = clientOf(connections);
  await settled();
  assert.equal(
    [known, clients[0]!, clients[1]!, late].map(({ socket }) => socket.destroyed),
    [false, true, false, false],
  );
  assert.is(connections.open.size, maxStrangers + 1);
});

strangers("are closed after 64 KiB of answers, who has shown a token is not", async () => {
  for (const isKnown of [false, true]) {
    const { connections } = create();
    const client = clientOf(connections);
    if (isKnown) client.send(frameOf("token"));
    const body = "x".repeat(10_000);
    for (let i = 0; i < 20; i++) client.send(frameOf(body));
    await settled();
    assert.is(client.socket.writableEnded, !isKnown);
    const bodies = messagesIn(client.received()).filter((message) => message === body);
    assert.is(bodies.length, isKnown ? 20 : 7);
  }
});

strangers("are closed after 25000 refusals that need no answer, who has shown a token is not", async () => {
  for (const isKnown of [false, true]) {
    const { connections } = create();
    connections.handle = (body, caller) => {
      if (String(body) === '"token"') caller.known = true;
      else caller.refusals = (caller.refusals ?? 0) + 13_000;
      return undefined;
    };
    const client = clientOf(connections);
    if (isKnown) client.send(frameOf("token"));
    for (let i = 0; i < 3; i++) client.send(frameOf("a"));
    await settled();
    assert.is(client.socket.writableEnded, !isKnown);
  }
});

strangers.run();

const flow = suite("a connection");

flow("is not read from while it does not take its answers, and is when it does", async () => {
  const { connections, bodies } = create();
  const client = clientOf(connections);
  client.send(frameOf("token"));
  await settled();
  client.stall();
  const body = "x".repeat(8_000_000);
  for (let i = 0; i < 5; i++) client.send(frameOf(body));
  await until("what goes into 16 MiB has been read", () => bodies.length === 4);
  await settled();
  assert.ok(client.socket.isPaused());
  assert.is(bodies.length, 4);
  client.takeAll();
  await until("all has been read", () => bodies.length === 6);
});

flow("has at most 1000 requests under way, and 16 MiB of them", async () => {
  for (const [text, count, most] of [
    ["never", 1010, 1001],
    ["x".repeat(8_000_000), 10, 3],
  ] as const) {
    const { connections, bodies } = create();
    connections.handle = (body) => {
      bodies.push(String(body));
      return new Promise(() => {});
    };
    const client = clientOf(connections);
    const [connection] = connections.open;
    connection!.caller.known = true;
    connection!.decoder.maxBodyBytes = maxBodyBytes;
    for (let i = 0; i < count; i++) client.send(frameOf(text));
    await until("as much is under way as may be", () => bodies.length === most);
    for (let i = 0; i < 3; i++) await settled();
    assert.ok(client.socket.isPaused());
    assert.is(bodies.length, most);
  }
});

for (const [what, body, most] of [
  ["a small body, at once", "b", 5],
  ["a large one, in their turn", "b".repeat(20_000), 8],
] as const) {
  flow(`has its turn, and others theirs, while one has sent much: ${what}`, async () => {
    const { connections } = create();
    const order: string[] = [];
    connections.handle = (_body, caller) => {
      order.push(caller.peer.id);
      for (const end = performance.now() + 10; performance.now() < end; );
      return undefined;
    };
    const [busy, greedy, other] = [clientOf(connections), clientOf(connections), clientOf(connections)];
    busy.send(Buffer.concat(Array(20).fill(frameOf("a"))));
    greedy.send(Buffer.concat(Array(20).fill(frameOf("a".repeat(20_000)))));
    await settled();
    assert.ok(busy.socket.isPaused() && greedy.socket.isPaused());
    const before = order.length;
    other.send(frameOf(body));
    await until("all is read", () => order.length === 41);
    assert.ok(order.indexOf("c3") - before < most, order.join());
    assert.ok(order.lastIndexOf("c1") - order.lastIndexOf("c2") < 5, order.join());
    assert.not.ok(busy.socket.isPaused() || greedy.socket.isPaused());
  });
}

flow("of small frames does not take more memory while it waits for its turn", async () => {
  const { connections } = create();
  connections.handle = () => {
    for (const end = performance.now() + 1; performance.now() < end; );
    return undefined;
  };
  const client = clientOf(connections);
  client.send(Buffer.concat(Array(10_000).fill(frameOf(1))));
  await settled();
  const [connection] = connections.open;
  assert.ok(connection!.waiting.length <= 64 && connection!.undecoded.length > 0);
  client.socket.destroy();
});

flow("has what comes after a batch wait until all of the batch is called, and ends only then", async () => {
  const { connections } = create();
  const order: string[] = [];
  let finish = (): void => {};
  connections.handle = (body, caller) => {
    order.push(String(body));
    if (String(body) !== '"batch"') return '"answer"';
    caller.calling = new Promise<void>((done) => (finish = done)).then(() => {
      caller.calling = undefined;
    });
    return caller.calling.then(() => '"batch"');
  };
  const client = clientOf(connections);
  client.send(Buffer.concat([frameOf("batch"), frameOf("next")]));
  client.socket.push(null);
  await settled();
  assert.equal(order, ['"batch"']);
  assert.not.ok(client.socket.writableEnded);
  finish();
  await until("it has ended", () => client.socket.writableFinished);
  assert.equal(order, ['"batch"', '"next"']);
  assert.equal(messagesIn(client.received()).sort(), ["answer", "batch"]);
});

flow("is sent messages, each whole; what cannot be sent closes it, and throws nothing", async () => {
  const { connections, callers, log } = create();
  const client = clientOf(connections);
  client.send(frameOf("a"));
  await settled();
  const { peer } = callers[0]!;
  const data = Buffer.alloc(32 << 10, 7).toString("base64");
  assert.is(peer.send({ type: "stream", processId: "é", stream: "stdout", seq: 1, data }), true);
  assert.is(peer.send({ type: "detached", processId: "p", by: "c2" }), true);
  await settled();
  assert.equal(messagesIn(client.received()), [
    "a",
    { type: "stream", processId: "é", stream: "stdout", seq: 1, data },
    { type: "detached", processId: "p", by: "c2" },
  ]);
  assert.is(peer.send({ type: "stream", processId: "x".repeat(maxBodyBytes), data: "" }), true);
  assert.ok(client.socket.destroyed);
  assert.is(peer.send({ type: "detached" }), true, "nor does one that is closed");
  assert.is(log.filter((line) => line.includes("Internal error on c1")).length, 1);
});

flow("is sent large output whole, however late it takes it, in buffers that are used again", async () => {
  const { connections, callers } = create();
  const clients = [clientOf(connections), clientOf(connections)];
  for (const client of clients) client.send(frameOf("a"));
  await settled();
  for (const client of clients) client.stall();
  const sent = [..."abcdefghijkl"].map((letter) => letter.repeat(43_692));
  for (const data of sent) {
    for (const { peer } of callers) peer.send({ type: "stream", processId: "p", stream: "stdout", seq: 1, data });
    await settled();
  }
  for (const client of clients) client.takeAll();
  await settled();
  for (const client of clients)
    assert.equal(
      messagesIn(client.received())
        .slice(1)
        .map(({ data }) => data),
      sent,
    );
  assert.ok(connections.spares.length > 0 && connections.spares.length <= 8, String(connections.spares.length));
  const kept = [...connections.spares];
  callers[0]!.peer.send({ type: "stream", processId: "p", stream: "stdout", seq: 2, data: sent[0]! });
  await settled();
  assert.ok(
    connections.spares.every((spare) => kept.includes(spare)),
    "none is new",
  );
});

flow("tells who sends that it has fallen behind, and when it has caught up or closed", async () => {
  const { connections, callers } = create();
  const client = clientOf(connections);
  client.send(frameOf("a"));
  await settled();
  const { peer } = callers[0]!;
  const told: string[] = [];
  peer.onDrain(() => void told.push("drain"));
  const stop = peer.onDrain(() => void told.push("not this one"));
  peer.onClose(() => void told.push("close"));
  stop();
  client.stall();
  assert.is(peer.send({ data: "x".repeat(2 << 20) }), false);
  assert.ok(peer.unsentBytes > 2 << 20);
  client.takeAll();
  await until("it has drained", () => told.length === 1);
  client.socket.destroy();
  await settled();
  assert.equal(told, ["drain", "close"]);
});

flow("that is closed with all others may still take what was written", async () => {
  const { connections } = create();
  const client = clientOf(connections);
  client.send(frameOf("a"));
  await settled();
  closeAll(connections);
  await isClosed(client);
  assert.equal(messagesIn(client.received()), ["a"]);
});

flow.run();

const held = suite("half-sent frames");

/** A frame without its last byte. */
const mostOf = (length: number): Buffer => frameOf("x".repeat(length - 2)).subarray(0, -1);

async function knownClients(connections: Connections, count: number): Promise<Client[]> {
  const clients = Array.from({ length: count }, () => clientOf(connections));
  for (const client of clients) client.send(frameOf("token"));
  await settled();
  return clients;
}

held(
  "have a bound together: the one that has stood still longest is given up, told, and its connection goes on",
  async () => {
    const { connections, bodies } = create();
    const clients = await knownClients(connections, 5);
    for (const client of clients) {
      client.send(mostOf(16_000_000));
      await settled();
      assert.ok(connections.heldBytes <= 64 << 20, `${connections.heldBytes} bytes are held`);
    }
    const [told, ...others] = clients.map((client) => messagesIn(client.received()).slice(1));
    assert.equal(others, [[], [], [], []]);
    assert.is(told!.length, 1);
    assert.equal([told![0].id, told![0].error.data.errno], [null, "ENOMEM"]);
    assert.match(
      told![0].error.message,
      /^Cannot read frame: the half-sent frames of all connections have over 67108864 bytes/,
    );
    for (const client of clients) client.send('"');
    clients[0]!.send(frameOf("a"));
    await until("all is read", () => bodies.length === 10);
    assert.equal(
      bodies.map(({ length }) => length).sort((one, other) => one - other),
      [3, ...Array(5).fill(7), ...Array(4).fill(16_000_000)],
    );
    assert.is(connections.heldBytes, 0);
  },
);

held("that have stood still longest are not those that grow", async () => {
  const { connections } = create();
  const clients = await knownClients(connections, 5);
  const rest = mostOf(16_000_000);
  clients[0]!.send(rest.subarray(0, 10_000_000));
  await settled();
  for (const client of clients.slice(1, 4)) {
    client.send(rest);
    await settled();
  }
  clients[0]!.send(rest.subarray(10_000_000));
  await settled();
  clients[4]!.send(rest);
  await settled();
  assert.equal(
    clients.map((client) => messagesIn(client.received()).length),
    [1, 2, 1, 1, 1],
  );
});

held("of lines are given up in the same way", async () => {
  const { connections, bodies } = create();
  const clients = Array.from({ length: 5 }, () => clientOf(connections));
  for (const client of clients) {
    client.send('"token"\n');
    client.send("x".repeat(16_000_000));
    await settled();
  }
  clients[0]!.send('x\n"a"\n');
  await settled();
  const [, error = "", answer, ...more] = String(clients[0]!.received()).split("\n");
  assert.match(error, /ENOMEM/);
  assert.equal([answer, more], ['"a"', [""]]);
  assert.is(bodies.at(-1), '"a"');
});

held("count no more when their connections are closed", async () => {
  const { connections } = create();
  const clients = await knownClients(connections, 3);
  for (const client of clients) client.send(mostOf(16_000_000));
  await settled();
  assert.ok(connections.heldBytes >= 3 * 15_000_000);
  for (const { socket } of clients) socket.destroy();
  await settled();
  assert.is(connections.heldBytes, 0);
});

held.run();

const shortage = suite("noteShortage()");

shortage("logs what the host is short of, once for each errno, and nothing else", () => {
  const { connections, log } = create();
  noteShortage(connections, "ENOSPC", "no space");
  noteShortage(connections, "ENOSPC", "no space again");
  noteShortage(connections, "EMFILE", "no descriptors");
  noteShortage(connections, "ENOENT", "no file");
  noteShortage(connections, undefined, "nothing");
  assert.equal(log, [
    "[Server] The host is short of something: no space",
    "[Server] The host is short of something: no descriptors",
  ]);
});

shortage.run();
