// time limit: 240 s
/** Processes through the library: each way to take their output and to write to them, who is slow, and lines that are cut. */

import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { once } from "node:events";
import { readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { connect } from "../api.ts";
import type { Connection, ConnectOptions, HoldfastError, Output, RemoteProcess, RunOptions } from "../library.ts";
import type { Wire } from "../remote.ts";
import { runProcess, takeMessage } from "../remote.ts";
import type { TestDaemon } from "./daemon.ts";
import { builtFile, eventually, sleep, withDaemon } from "./daemon.ts";

const sh = (script: string, ...args: string[]) => ({ command: "/bin/sh", args: ["-c", script, "sh", ...args] });

/** So many lines, each with its number: what is lost or doubled shows. */
const lines = (count: number): string => Array.from({ length: count }, (_, at) => `${at + 1}\n`).join("");

async function textOf(output: AsyncIterable<Output | Uint8Array>): Promise<string> {
  const pieces: Uint8Array[] = [];
  for await (const piece of output) pieces.push("data" in piece ? (piece as Output).data : piece);
  return Buffer.concat(pieces).toString();
}

async function refusal(promise: Promise<unknown>): Promise<HoldfastError> {
  try {
    await promise;
  } catch (error) {
    return error as HoldfastError;
  }
  throw new Error("it was not rejected");
}

function withConnection(
  use: (there: Connection, daemon: TestDaemon) => Promise<void>,
  options: ConnectOptions = {},
): Promise<void> {
  return withDaemon(async (daemon) => {
    const there = await connect({ socket: daemon.socket, token: daemon.token, ...options });
    await use(there, daemon).finally(() => there.close());
  });
}

/** A line that can be cut: the bridge's pid is in a file. */
function cuttable({ socket, directory }: TestDaemon): { command: string[]; cut(): void } {
  const pidFile = join(directory, "bridge.pid");
  const script = `echo $$ > ${pidFile}; exec ${process.execPath} ${builtFile} --bridge --socket ${socket}`;
  return {
    command: ["sh", "-c", script],
    cut() {
      try {
        process.kill(Number(readFileSync(pidFile, "utf8")), "SIGKILL");
      } catch {
        // it is just between two
      }
    },
  };
}

const output = suite("the output");

output("is iterated over in order, with its end, by several at once", () =>
  withConnection(async (there) => {
    const child = await there.spawn(sh("echo 1; echo 2 >&2; sleep 0.1; echo 3"));
    const [all, again, stdout, stderr] = await Promise.all([
      textOf(child.output),
      textOf(child.output),
      textOf(child.stdout),
      textOf(child.stderr),
    ]);
    assert.equal([all.split("\n").sort().join(""), again, stdout, stderr], ["123", all, "1\n3\n", "2\n"]);
    assert.equal(await child.exit, { exitCode: 0 });
    assert.equal(await textOf(child.output), "", "and nothing after it");
  }),
);

output("is there for who comes late, also more of it than is kept here", () =>
  withConnection(async (there) => {
    const child = await there.spawn(sh("seq 1 1000000"));
    assert.equal(await child.exit, { exitCode: 0 });
    assert.is(child.lastSeq, 0, "none was given yet");
    const text = await textOf(child.output);
    assert.ok(text === lines(1_000_000), `${text.length} bytes`);
    assert.is(child.missed, 0);
  }),
);

output("waits for who is slow, and for nobody else: requests are answered, and no byte is lost", () =>
  withConnection(async (there) => {
    const child = await there.spawn({ ...sh("seq 1 3000000"), lossless: false });
    let pings = 0;
    let text = "";
    for await (const { data } of child.output) {
      text += Buffer.from(data).toString();
      if (pings++ % 20 === 0) {
        await sleep(5);
        await there.request("server.ping", {}, { timeoutMs: 10_000 });
      }
    }
    assert.ok(text === lines(3_000_000), `${text.length} bytes, ${child.missed} missed`);
    assert.equal(await child.exit, { exitCode: 0 });
  }),
);

output("of a process that nobody reads from holds up no other", () =>
  withConnection(async (there) => {
    const loud = await there.spawn(sh("seq 1 2000000; sleep 1000"));
    const reading = loud.output[Symbol.asyncIterator]();
    await reading.next(); // and then no more
    await eventually(async () => {
      const { stdout } = await there.run({ command: "echo", args: ["heard"] });
      return stdout === "heard\n";
    }, "the other is heard");
    await loud.terminate();
    await reading.return?.();
  }),
);

output("ends for who leaves the loop, and goes on elsewhere without a gap", () =>
  withConnection(async (there) => {
    const child = await there.spawn(sh("seq 1 200000"));
    let first = "";
    for await (const { data } of child.output) {
      first += Buffer.from(data).toString();
      if (first.length > 100_000) break;
    }
    const again = await there.reattach(child.id, { fromSeq: child.lastSeq });
    const text = first + (await textOf(again.output));
    assert.ok(text === lines(200_000), `${text.length} bytes`);
    assert.is((await refusal(there.reattach("nothing"))).reason, "not-found");
  }),
);

output("comes by node streams, and stdin goes by one", () =>
  withConnection(async (there) => {
    const child = await there.spawn({ command: "sha256sum" });
    const bytes = Buffer.alloc(5 << 20, "x y z ");
    const [text] = await Promise.all([textOf(child.stdout), pipeline(Readable.from([bytes]), child.stdin)]);
    assert.is(text.slice(0, 64), createHash("sha256").update(bytes).digest("hex"));
    const { stdout, stdin } = child;
    assert.ok(stdout === child.stdout && stdin === child.stdin);
    const flowing = await there.spawn(sh("seq 1 300000; exit 3"));
    const pieces: Buffer[] = [];
    flowing.stdout.on("data", (data: Buffer) => pieces.push(data));
    await once(flowing.stdout, "end");
    assert.ok(Buffer.concat(pieces).toString() === lines(300_000));
    assert.equal(await flowing.exit, { exitCode: 3 });
  }),
);

output.run();

const running = suite("run()");

running("gives stdout, stderr and the exit code, and leaves no record", () =>
  withConnection(async (there) => {
    const result = await there.run({ ...sh('cat; echo "$V" >&2; exit 3'), input: "été\n", env: { V: "v" }, cwd: "/" });
    const { stdout, stderr, exitCode, stdoutBytes } = result;
    assert.equal([stdout, stderr, exitCode, stdoutBytes.length], ["été\n", "v\n", 3, 6]);
    assert.is((await there.run({ command: "cat" })).stdout, "", "without input stdin is at its end");
    const methods = there.capabilities.methods as string[];
    if (methods.includes("process.forget"))
      await eventually(async () => (await there.list()).length === 0, "the records are gone");
  }),
);

running("rejects on request, when it is too long, too much, or given up; and the process has ended then", () =>
  withConnection(async (there) => {
    const failed = await refusal(there.run({ ...sh("echo out; echo oops >&2; exit 7"), check: true }));
    assert.equal([failed.reason, failed.exitCode, failed.stderr], ["exit-code", 7, "oops\n"]);
    assert.is((failed.data.result as { stdout: string }).stdout, "out\n");
    const late = await refusal(there.run({ command: "sleep", args: ["1000"], timeoutMs: 100 }));
    assert.is(late.reason, "time-limit");
    const much = await refusal(there.run({ command: "yes", maxBytes: 100_000 }));
    assert.is(much.reason, "too-large");
    const stop = new AbortController();
    const given = there.run({ command: "sleep", args: ["1000"], signal: stop.signal });
    setTimeout(() => stop.abort(), 100);
    assert.is((await refusal(given)).name, "AbortError");
    const aborted = there.run({ command: "sleep", args: ["1000"], signal: AbortSignal.abort() });
    assert.is((await refusal(aborted)).name, "AbortError");
    await eventually(async () => (await there.list()).every(({ running }) => !running), "all have ended");
  }),
);

/** run() of a process that has said so much when the answer to its start comes, and ends when it is told to; or by itself, where `end` says how. */
async function runOf(end: object | undefined, options: Partial<RunOptions>): Promise<[asked: string[], result: any]> {
  const asked: string[] = [];
  let seq = 0;
  let child: Parameters<Wire["route"]>[0];
  const say = (stream: string, more: object): void =>
    takeMessage(child, { type: "stream", processId: child.id, stream, seq: ++seq, ...more });
  const wire: Wire = {
    async request(method, _params, _options, now) {
      asked.push(method);
      now?.({ pid: 1, id: "a" });
      if (method === "process.spawn") say("stderr", { data: Buffer.from("said\n").toString("base64") });
      if (method === "process.spawn" && end) say("exit", end);
      if (method === "process.killAndWait") say("exit", { exitCode: 143, signal: "SIGTERM" });
      return { died: true };
    },
    route: (remote) => (child = remote),
    unroute: () => {},
    balance: () => {},
    online: async () => {},
    mayReturn: false,
  };
  const result = await runProcess(wire, { command: "c", ...options }).catch((error) => error);
  return [asked, result];
}

running("ends what has written too much before it was known to be there", async () => {
  for (const [end, maxBytes, reason, calls] of [
    [undefined, 4, "too-large", ["process.spawn", "process.killAndWait", "process.forget"]],
    [{ exitCode: 0 }, 5, undefined, ["process.spawn", "process.forget"]],
  ] as const) {
    const [asked, result] = await runOf(end, { maxBytes });
    assert.equal([asked, result.reason], [calls, reason], String(result));
  }
});

running("says how it ended, or why nobody knows", async () => {
  const unknown = { exitCode: -1, unknown: "its holder was killed" };
  const [, { exitCode, reason, killedBy }] = await runOf({ ...unknown, killedBy: "shutdown" }, {});
  assert.equal([exitCode, reason, killedBy], [null, "its holder was killed", "shutdown"]);
  for (const [end, words] of [
    [{ exitCode: 2 }, 'Cannot run "c": it ended with exit code 2: said'],
    [unknown, 'Cannot run "c": nobody knows how it ended: its holder was killed: said'],
  ] as const)
    assert.is((await runOf(end, { check: true }))[1].message, words);
});

running("says nothing of what was not said", () =>
  withConnection(async (there) => {
    const failed = await refusal(there.run({ ...sh("exit 2"), check: true }));
    assert.is(failed.message, 'Cannot run "/bin/sh": it ended with exit code 2');
    const absent = await refusal(there.reattach("x"));
    assert.equal(
      [absent.reason, absent.message, absent.hint],
      [
        "not-found",
        'Cannot reattach: no process has the id "x"',
        "look for it with list(), or on the host with --list",
      ],
    );
  }),
);

running("ends its process with `await using`, and by terminate()", () =>
  withConnection(async (there) => {
    const child = await there.spawn(sh("trap '' TERM; echo ready; sleep 1000 & wait; sleep 1000"));
    await once(child.stdout, "data");
    await child[Symbol.asyncDispose]();
    assert.is((await child.exit).signal, "SIGKILL");
    await child[Symbol.asyncDispose]();
    const other = await there.spawn({ command: "sleep", args: ["1000"] });
    assert.equal(await other.terminate(), { died: true });
    assert.is((await other.exit).signal, "SIGTERM");
  }),
);

running.run();

const cut = suite("with reconnect, a line that is cut");

const quick = { minDelayMs: 20, maxDelayMs: 100 };

/** Cuts the line again and again while `use` goes on, each time that it has been there for so long. */
function withCuts(
  use: (there: Connection, daemon: TestDaemon, cuts: () => number) => Promise<void>,
  everyMs: number,
): Promise<void> {
  return withDaemon(async (daemon) => {
    const { command, cut: cutLine } = cuttable(daemon);
    const there = await connect({ command, token: daemon.token, reconnect: quick });
    let lost = 0;
    let found = 0;
    let isOver = false;
    let timer = setTimeout(cutLine, everyMs);
    there
      .on("lost", () => lost++)
      .on("reconnected", ({ sameDaemon }) => {
        found += sameDaemon ? 1 : 1000;
        if (!isOver) timer = setTimeout(cutLine, everyMs);
      });
    try {
      await use(there, daemon, () => lost);
      isOver = true;
      clearTimeout(timer);
      await eventually(() => found === lost, `as often found as lost: ${found} of ${lost}`);
      assert.ok(lost >= 2, `${lost} cuts`);
    } finally {
      clearTimeout(timer);
      await there.close();
    }
  });
}

cut("loses no output and doubles none", () =>
  withCuts(async (there, { directory }, cuts) => {
    const go = join(directory, "go"); // not over before the line was cut twice
    const wait = "while ! [ -e $1 ]; do sleep 0.05; done";
    const child = await there.spawn(
      sh(`for i in 1 2 3 4 5 6 7 8; do seq 1 100000; sleep 0.25; done; ${wait}; exit 5`, go),
    );
    void eventually(() => cuts() >= 2, "two cuts").then(() => writeFileSync(go, ""));
    const text = await textOf(child.output);
    assert.ok(text === lines(100_000).repeat(8), `${text.length} bytes, ${child.missed} missed`);
    assert.equal(await child.exit, { exitCode: 5 });
  }, 450),
);

cut("loses no input and doubles none", () =>
  withCuts(async (there) => {
    const child = await there.spawn({ command: "cat" });
    const text = textOf(child.output);
    for (let at = 0; at < 60; at++) {
      await child.write(lines(20_000));
      await sleep(30);
    }
    await child.end();
    const back = await text;
    assert.ok(back === lines(20_000).repeat(60), `${back.length} bytes`);
    assert.equal(await child.exit, { exitCode: 0 });
  }, 450),
);

cut("starts each process once, whenever it is cut", () =>
  withCuts(async (there, { directory }, cuts) => {
    let count = 0;
    for (; cuts() < 5 || count < 40; count++) {
      const { exitCode } = await there.run(sh(`echo ${count} >> ${join(directory, "started")}`));
      assert.is(exitCode, 0);
    }
    const started = readFileSync(join(directory, "started"), "utf8").trim().split("\n");
    assert.equal(
      started.map(Number),
      Array.from({ length: count }, (_, at) => at),
    );
  }, 300),
);

cut("makes a request wait, and one that was under way fail; close() ends it all", () =>
  withDaemon(async (daemon) => {
    const { command, cut: cutLine } = cuttable(daemon);
    const there = await connect({ command, token: daemon.token, reconnect: { minDelayMs: 300 } });
    const child = await there.spawn({ command: "sleep", args: ["1000"] });
    const slow = there.request("process.killAndWait", { id: child.id, signal: "SIGCONT", escalate: false });
    const lost = new Promise((done) => there.on("lost", done));
    cutLine();
    const error = await refusal(slow);
    assert.is(error.code, -32010, error.message);
    await lost;
    assert.equal(await there.request("server.ping"), { pong: true }, "after the line is there again");
    assert.is((await refusal(there.request("server.ping", {}, { signal: AbortSignal.abort() }))).name, "AbortError");
    cutLine();
    await new Promise((done) => there.on("lost", done));
    const waiting = refusal(there.request("server.ping"));
    const writing = refusal(child.write("x"));
    await there.close();
    for (const failure of [await waiting, await writing, await refusal(child.exit)])
      assert.is(failure.reason, "closed-here", failure.message);
    assert.is((await there.closed).reason, "closed-here");
    const again = await connect({ socket: daemon.socket, token: daemon.token });
    await again.kill(child.id, "SIGKILL");
    await again.close();
  }),
);

cut("is given up after its time, or at once where no attempt helps", () =>
  withDaemon(async (daemon) => {
    const { command, cut: cutLine } = cuttable(daemon);
    const script = (more: string): string[] => [
      "sh",
      "-c",
      `[ -e ${daemon.directory}/no ] && { ${more}; }; ${command[2]}`,
    ];
    for (const [more, reason] of [
      ["echo Host key verification failed. >&2; exit 255", "host-key"],
      ["echo ssh: connect to host x port 22: No route to host >&2; exit 255", "no-route"],
    ] as const) {
      const reconnect = { ...quick, giveUpAfterMs: 3000 };
      const there = await connect({ command: script(more), token: daemon.token, reconnect });
      const child: RemoteProcess = await there.spawn({ command: "true" });
      await child.exit;
      let retries = 0;
      there.on("retry", () => retries++);
      spawnSync("touch", [`${daemon.directory}/no`]);
      cutLine();
      const loss = await there.closed;
      assert.equal([loss.reason, retries > 0], [reason, reason === "no-route"]);
      assert.is((await refusal(there.request("server.ping"))).reason, reason);
      rmSync(`${daemon.directory}/no`);
    }
  }),
);

cut.run();
