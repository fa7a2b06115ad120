import { Buffer } from "node:buffer";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import type { Link, Manner, Source } from "../readers.ts";
import { attach, deliver, detach, linkOf, mayFlow, serve } from "../readers.ts";
import type { Peer } from "../rpc.ts";
import type { RoomOptions, Stream } from "../spool.ts";
import { appendOutput, createRoom, createSpool } from "../spool.ts";

/** A connection that takes so many messages before it falls behind. */
interface FakePeer extends Peer {
  messages: any[];
  room: number;
  unsentBytes: number;
  drain(room: number): void;
  close(): void;
}

function createPeer(id: string, room = Infinity): FakePeer {
  let drained = () => {};
  let closed = () => {};
  const peer: FakePeer = {
    id,
    room,
    messages: [],
    unsentBytes: 0,
    send: (message) => peer.messages.push(message) > 0 && --peer.room > 0,
    onDrain(listener) {
      drained = listener;
      return () => {};
    },
    onClose(listener) {
      closed = listener;
      return () => {};
    },
    drain(more) {
      peer.room = more;
      drained();
    },
    close: () => closed(),
  };
  return peer;
}

interface World {
  links: Map<Peer, Link>;
  source(id: string, options?: RoomOptions): Omit<Source, "isDone"> & { isDone: boolean; flows: number };
  link(peer: Peer, stallMs?: number): Link;
}

function createWorld(): World {
  const links = new Map<Peer, Link>();
  return {
    links,
    source(id, options = {}) {
      const spool = createSpool(
        createRoom(() => {}, options),
        id,
      );
      const source = { id, spool, readers: new Set() as Source["readers"], isDone: false, flows: 0, onFlow: () => {} };
      source.onFlow = () => void source.flows++;
      return source;
    },
    link: (peer, stallMs = 60_000) => linkOf(links, peer, { stallMs, unsentBytes: 16 << 20 }),
  };
}

function say(source: Source, text: string, stream: Stream = "stdout"): void {
  deliver(source, appendOutput(source.spool, stream, Buffer.from(text)));
}

/** "1:text 2:text", and other messages by what they are. */
function wordsOf({ messages }: FakePeer): string {
  return messages
    .map(({ seq, stream, data, type, by }) => {
      if (type !== "stream") return `${type} by ${by}`;
      return `${seq}:${data === undefined ? stream : Buffer.from(data, "base64")}`;
    })
    .join(" ");
}

/** Two segments of 128 KiB. */
const small: RoomOptions = { memoryBytes: 256 << 10 };
const large = "x".repeat(30_000);
const readers = suite("readers");

for (const [name, from, words] of [
  ["from the first on", 1, "1:a 2:b 3:c 4:d"],
  ["from the middle on", 3, "3:c 4:d"],
  ["from what comes next on", 4, "4:d"],
] as const) {
  readers(`are sent what is held and what comes, each once, ${name}`, () => {
    const { source, link } = createWorld();
    const [child, peer] = [source("p"), createPeer("c1")];
    for (const text of ["a", "b", "c"]) say(child, text);
    attach(child, link(peer), from);
    say(child, "d");
    serve(link(peer));
    assert.is(wordsOf(peer), words);
  });
}
readers("that are behind are sent what it was, though its chunk is overwritten", () => {
  const { source, link } = createWorld();
  const [child, peer] = [source("p"), createPeer("c1", 1)];
  attach(child, link(peer), 1);
  const chunk = Buffer.alloc(3);
  for (const text of ["one", "two", "six"]) {
    chunk.write(text);
    deliver(child, appendOutput(child.spool, "stdout", chunk));
  }
  peer.drain(Infinity);
  assert.is(wordsOf(peer), "1:one 2:two 3:six");
});
readers("have places of their own: one that is behind, one that is not, one that came late", () => {
  const { source, link } = createWorld();
  const child = source("p");
  const peers = [createPeer("c1", 1), createPeer("c2"), createPeer("c3")];
  const manner: Manner = { share: true, lossless: false, overtake: false };
  attach(child, link(peers[0]!), 1, manner);
  attach(child, link(peers[1]!), 1, manner);
  for (const text of ["a", "b", "c"]) say(child, text);
  attach(child, link(peers[2]!), 2, manner);
  serve(link(peers[2]!));
  assert.equal(peers.map(wordsOf), ["1:a", "1:a 2:b 3:c", "2:b 3:c"]);
  peers[0]!.drain(2);
  assert.is(wordsOf(peers[0]!), "1:a 2:b 3:c");
  say(child, "d");
  peers[0]!.drain(9);
  assert.equal(
    peers.map((peer) => wordsOf(peer).split(" ").at(-1)),
    ["4:d", "4:d", "4:d"],
  );
});
for (const [share, lossless, flows] of [
  [false, false, false],
  [true, false, true],
  [false, true, false],
  [true, true, false],
] as const) {
  readers(
    `that share: ${share}, lossless: ${lossless}, let a child ${flows ? "flow" : "stand still"} while they are behind`,
    () => {
      const { source, link } = createWorld();
      const [child, peer] = [source("p"), createPeer("c1", 1)];
      attach(child, link(peer), 1, { share, lossless, overtake: false });
      assert.ok(mayFlow(child));
      say(child, "a");
      assert.is(mayFlow(child), flows);
      const told = child.flows;
      peer.drain(9);
      assert.ok(mayFlow(child) && child.flows > told, "whoever holds the pipe is told");
    },
  );
}
readers("that take nothing for long slow nobody; but for one that is not to lose anything", async () => {
  const { source, link } = createWorld();
  const [child, loyal] = [source("p", small), source("q", small)];
  const peers = [createPeer("c1", 1), createPeer("c2", 1)];
  attach(child, link(peers[0]!, 10), 1);
  attach(loyal, link(peers[1]!, 10), 1, { share: false, lossless: true, overtake: false });
  for (const each of [child, loyal]) say(each, large);
  assert.equal([mayFlow(child), mayFlow(loyal)], [false, false]);
  for (let turn = 0; turn < 500 && !mayFlow(child); turn++) await new Promise((done) => setTimeout(done, 10));
  assert.equal([mayFlow(child), mayFlow(loyal)], [true, false]);
  for (let turn = 0; turn < 20; turn++) for (const each of [child, loyal]) say(each, large);
  assert.equal(peers[0]!.messages.at(-1), { type: "detached", processId: "p", by: "backpressure" });
  assert.is(child.readers.size, 0);
  peers[1]!.drain(99);
  assert.equal(
    peers[1]!.messages.map(({ seq }) => seq),
    Array.from({ length: 21 }, (_, at) => at + 1),
  );
});
readers(
  "that are not to lose anything, and take nothing for long, slow nobody where one reads on that overtakes them",
  async () => {
    const { source, link } = createWorld();
    const child = source("p", small);
    const [silent, back] = [createPeer("c1", 1), createPeer("c2")];
    attach(child, link(silent, 10), 1, { share: false, lossless: true, overtake: false });
    say(child, large);
    await new Promise((done) => setTimeout(done, 100));
    assert.is(mayFlow(child), false);
    const told = child.flows;
    const reader = attach(child, link(back, 10), 1, { share: true, lossless: true, overtake: true });
    for (let turn = 0; turn < 500 && !mayFlow(child); turn++) await new Promise((done) => setTimeout(done, 10));
    assert.ok(mayFlow(child) && child.flows > told);
    detach(reader);
    assert.is(mayFlow(child), false, "and again as it was");
    silent.drain(9);
    assert.ok(mayFlow(child));
  },
);
readers("that share, and are too slow for what is held, are told how much they missed, and go on", () => {
  const { source, link } = createWorld();
  const [child, peer] = [source("p", small), createPeer("c1", 1)];
  attach(child, link(peer), 1, { share: true, lossless: false, overtake: false });
  for (let turn = 0; turn < 60; turn++) say(child, large);
  peer.drain(999);
  const gap = peer.messages.find(({ stream }) => stream === "gap");
  const seqs = peer.messages.map(({ seq }) => seq);
  const at = peer.messages.indexOf(gap);
  assert.is(seqs.at(-1), 60);
  for (let i = 1; i < seqs.length; i++) if (i !== at) assert.is(seqs[i], seqs[i - 1] + 1);
  const missed = gap.seq - seqs[at - 1];
  assert.ok(missed > 0 && gap.maxBytes >= missed * large.length, JSON.stringify(gap));
});
readers("of one connection have their turns: a message of each", () => {
  const { source, link } = createWorld();
  const peer = createPeer("c1");
  const children = ["a", "b"].map((id) => source(id));
  for (const child of children) for (const text of ["1", "2", "3"]) say(child, text);
  for (const child of children) attach(child, link(peer), 1);
  serve(link(peer));
  assert.is(peer.messages.map(({ processId }) => processId).join(""), "ababab");
});
readers(
  "are let go with the exit; those who come later are sent what is behind it, until there is nothing more",
  () => {
    const { source, link } = createWorld();
    const [child, peer, late] = [source("p"), createPeer("c1"), createPeer("c2")];
    attach(child, link(peer), 1);
    say(child, "a");
    say(child, '{"exitCode":3}', "exit");
    say(child, "grandchild");
    assert.equal([wordsOf(peer), child.readers.size], ["1:a 2:exit", 0]);
    assert.is(peer.messages.at(-1).exitCode, 3);
    attach(child, link(late), 3);
    serve(link(late));
    assert.equal([wordsOf(late), child.readers.size], ["3:grandchild", 1]);
    child.isDone = true;
    deliver(child, []);
    assert.is(child.readers.size, 0);
  },
);
readers("are told by whom their stream was taken, and nothing when they gave it up", () => {
  const { source, link } = createWorld();
  const [child, peer] = [source("p"), createPeer("c1")];
  detach(attach(child, link(peer), 1));
  detach(attach(child, link(peer), 1), "c2");
  assert.is(wordsOf(peer), "detached by c2");
});
readers("of a connection in lines see its end in place of a word that they do not know", () => {
  const { source, link } = createWorld();
  const [child, peer] = [source("p"), createPeer("c1")];
  let ends = 0;
  peer.endLines = () => ++ends > 0;
  detach(attach(child, link(peer), 1), "c2");
  detach(attach(child, link(peer), 1));
  assert.equal([peer.messages, ends], [[], 1]);
});
readers("of a connection that has closed are gone, and hold nobody up", () => {
  const { source, link, links } = createWorld();
  const [child, peer] = [source("p"), createPeer("c1", 1)];
  attach(child, link(peer), 1);
  say(child, "a");
  assert.not.ok(mayFlow(child));
  peer.close();
  assert.equal([mayFlow(child), child.readers.size, child.spool.places.size, links.size], [true, 0, 0, 0]);
});
readers("with more unsent than may be are taken from all that they read", async () => {
  const { source, link } = createWorld();
  const peer = createPeer("c1", 1);
  const children = ["a", "b"].map((id) => source(id));
  for (const child of children) attach(child, link(peer, 10), 1);
  say(children[0]!, "1");
  peer.unsentBytes = (16 << 20) + 1;
  for (let turn = 0; turn < 500 && peer.messages.length < 3; turn++) await new Promise((done) => setTimeout(done, 10));
  assert.is(wordsOf(peer), "1:1 detached by backpressure detached by backpressure");
});
readers.run();
