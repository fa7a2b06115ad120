// time limit: 120 s
/** The API, as a script has it that imports the built file: over a socket, and over a command, as ssh would be one. */

import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { diagnose } from "../client.ts";
import type * as Api from "../deploy.ts";
import type { Connection, ConnectOptions, Output, Served } from "../library.ts";
import type { TestDaemon } from "./daemon.ts";
import { builtFile, eventually, findRunning, holdfast, isAlive, removeAll, sleep, withDaemon } from "./daemon.ts";

const { connect, serve, HoldfastError } = createRequire("/")(builtFile) as typeof Api;

const bridge = (socket: string): string[] => [process.execPath, builtFile, "--bridge", "--socket", socket];

/** Both ways to connect, and the connection's end. */
async function eachWay(use: (there: Connection, daemon: TestDaemon) => Promise<void>): Promise<void> {
  await withDaemon(async (daemon) => {
    for (const way of [{ socket: daemon.socket }, { command: bridge(daemon.socket) }] as ConnectOptions[]) {
      const there = await connect({ ...way, token: daemon.token });
      try {
        await use(there, daemon);
      } finally {
        there.close();
      }
    }
  });
}

async function refusal(promise: Promise<unknown>): Promise<Api.HoldfastError> {
  try {
    await promise;
  } catch (error) {
    return error as Api.HoldfastError;
  }
  throw new Error("it was not rejected");
}

const collect = (): { text(name?: Output["stream"]): string; seqs: number[]; onOutput(output: Output): void } => {
  const seen: Output[] = [];
  return {
    text: (name) =>
      seen
        .filter(({ stream }) => name === undefined || stream === name)
        .map(({ data }) => Buffer.from(data).toString())
        .join(""),
    get seqs() {
      return seen.map(({ seq }) => seq);
    },
    onOutput: (output) => void seen.push(output),
  };
};

const connecting = suite("connect()");

connecting("authenticates, and knows the daemon", () =>
  eachWay(async (there, { socket, token }) => {
    assert.match(there.instanceId, /^[0-9a-f]{32}$/);
    assert.ok((there.capabilities.methods as string[]).includes("process.spawn"));
    assert.equal(await there.request("server.ping"), { pong: true });
    const again = await connect({ socket, token });
    assert.is(again.instanceId, there.instanceId);
    again.close();
    assert.is((await again.closed).reason, "closed-here");
  }),
);

connecting("needs no token where the record is ours to read", () =>
  withDaemon(async ({ socket }) => {
    const there = await connect({ socket });
    assert.equal(await there.request("server.ping"), { pong: true });
    there.close();
  }),
);

connecting("rejects with the daemon's own words: a refused token, an unknown method, wrong params", () =>
  withDaemon(async ({ socket, token }) => {
    for (const way of [{ socket }, { command: bridge(socket) }]) {
      assert.is((await refusal(connect({ ...way, token: "wrong" }))).code, -32001);
      const there = await connect({ ...way, token });
      assert.is((await refusal(there.request("files.nothing"))).code, -32601);
      assert.is((await refusal(there.spawn({ command: "/no/such/command" }))).data?.errno, "ENOENT");
      there.close();
    }
  }),
);

connecting(
  "says why there is none: no socket, a bridge without a daemon, a command that fails, one that does not exist, one that says other things",
  async () => {
    const directory = mkdtempSync(join(tmpdir(), "holdfast-api-"));
    const socket = join(directory, "s");
    try {
      const rows: [ConnectOptions, RegExp, string | undefined][] = [
        [{ socket }, /no daemon/i, "never-started"],
        [{ socket, token: "t" }, /^Cannot connect to ".*": no such file or directory \(ENOENT\)$/, undefined],
        [{ command: bridge(socket), token: "t" }, /no daemon/i, "never-started"],
        [
          { command: ["sh", "-c", "echo 'host key verification failed' >&2; exit 255"], token: "t" },
          /^Cannot connect over "sh .*": it ended with exit code 255: host key verification failed$/,
          "host-key",
        ],
        [
          { command: [join(directory, "none"), "x"], token: "t" },
          /^Cannot connect over ".*none x": .*ENOENT/,
          "no-command",
        ],
      ];
      for (const [options, words, reason] of rows) {
        const error = await refusal(connect(options));
        assert.match(error.message, words);
        assert.is(error.code, -32010, error.message);
        assert.is(error.data?.reason, reason, error.message);
      }
      const silent = await refusal(connect({ command: ["sleep", "1000"], token: "t", timeoutMs: 200 }));
      assert.match(silent.message, /not answering/);
      await eventually(() => findRunning("sleep 1000", "children", process.pid).length === 0, "the command has ended");
    } finally {
      rmSync(directory, { recursive: true, force: true });
    }
  },
);

connecting("resolves closed, with the bridge's reason, when the daemon ends", () =>
  withDaemon(async ({ socket, token }) => {
    const there = await connect({ command: bridge(socket), token });
    await holdfast(["--stop", "--now", "--socket", socket]);
    const { reason, message } = await there.closed;
    assert.is(reason, "stopped", message);
    assert.is((await refusal(there.request("server.ping"))).code, -32010);
    await holdfast(["--serve", "--socket", socket]); // withDaemon() stops one
  }),
);

connecting.run();

const processes = suite("spawn() and reattach()");

processes("stream a process: both outputs in order, stdin, exit", () =>
  eachWay(async (there) => {
    const seen = collect();
    const child = await there.spawn({
      command: "/bin/sh",
      args: ["-c", 'read x; echo "$x" "$V"; echo oops >&2; cat; exit 3'],
      env: { V: "été" },
      cwd: "/",
      onOutput: seen.onOutput,
    });
    await child.write("first\n");
    const big = "x".repeat(3 << 20);
    await Promise.all([child.write(big), child.end()]);
    assert.equal(await child.exit, { exitCode: 3 });
    assert.is(seen.text("stderr"), "oops\n");
    assert.ok(seen.text("stdout") === `first été\n${big}`);
    assert.equal(
      seen.seqs,
      seen.seqs.map((_, at) => at + 1),
    );
    assert.is(child.lastSeq, seen.seqs.length + 1);
  }),
);

processes("kill it, and tell the signal", () =>
  eachWay(async (there) => {
    const child = await there.spawn({ command: "/bin/sleep", args: ["1000"] });
    await child.kill("SIGKILL");
    assert.equal(await child.exit, { exitCode: 137, signal: "SIGKILL", killedBy: "client" });
  }),
);

processes("take a process up after a lost connection, and miss nothing", () =>
  withDaemon(async ({ socket, token }) => {
    const first = await connect({ command: bridge(socket), token });
    const [before, after] = [collect(), collect()];
    const child = await first.spawn({
      id: "work",
      command: "/bin/sh",
      args: ["-c", "echo 1; echo 2; read x; for i in 3 4 5; do echo $i; done; read x; exit 9"],
      onOutput: before.onOutput,
    });
    await eventually(() => before.text() === "1\n2\n", "two lines");
    first.close();
    const lost = await refusal(child.exit);
    assert.match(lost.message, /The connection was closed here; the process "work" goes on/);
    const second = await connect({ socket, token });
    const again = await second.reattach("work", { fromSeq: child.lastSeq, onOutput: after.onOutput });
    await again.write("go\n");
    await eventually(() => after.text() === "3\n4\n5\n", "three more");
    assert.is(again.missed, 0);
    await again.write("end\n");
    assert.equal(await again.exit, { exitCode: 9 });
    // and when it has ended: all of it again, or only its end
    const whole = collect();
    assert.equal(await (await second.reattach("work", { onOutput: whole.onOutput })).exit, { exitCode: 9 });
    assert.is(whole.text(), "1\n2\n3\n4\n5\n");
    assert.equal(await (await second.reattach("work", { fromSeq: again.lastSeq })).exit, { exitCode: 9 });
    assert.is((await refusal(second.reattach("nothing"))).data?.reason, "not-found");
    second.close();
  }),
);

processes("lose a process to another connection, and say so", () =>
  withDaemon(async ({ socket, token }) => {
    const [first, second] = [await connect({ socket, token }), await connect({ socket, token })];
    const child = await first.spawn({ id: "a", command: "/bin/sleep", args: ["1000"] });
    const taken = await second.reattach("a");
    assert.is((await refusal(child.exit)).data?.reason, "detached");
    assert.is((await refusal(first.spawn({ id: "a", command: "/bin/true" }))).code, -32602);
    await taken.kill();
    assert.is((await taken.exit).signal, "SIGTERM");
    for (const there of [first, second]) there.close();
  }),
);

processes.run();

const told = suite("a connection, whatever happens to it");

/** A peer that speaks as a bridge does, by a script: `answer(result)` answers the request `id`. */
const peer = (script: string): string[] => [
  process.execPath,
  "-e",
  `const send = (message) => {
    const body = Buffer.from(JSON.stringify(message));
    const head = Buffer.alloc(4);
    head.writeUInt32BE(body.length);
    process.stdout.write(Buffer.concat([head, body]));
  };
  let bytes = Buffer.alloc(0);
  process.stdin.on("data", (chunk) => {
    bytes = Buffer.concat([bytes, chunk]);
    while (bytes.length >= 4 && bytes.length >= 4 + bytes.readUInt32BE()) {
      const { id, method, params } = JSON.parse(bytes.subarray(4, 4 + bytes.readUInt32BE()));
      bytes = bytes.subarray(4 + bytes.readUInt32BE());
      const answer = (result) => send({ jsonrpc: "2.0", id, result });
      if (method === "server.capabilities") answer({ instanceId: "peer" });
      else take({ id, method, params, answer });
    }
  });
  function take({ id, method, params, answer }) { ${script} }`,
];

told("tells all that wait when its command is killed while the application is busy", () =>
  withDaemon(async ({ socket, token, directory }) => {
    const pidFile = join(directory, "pid");
    const words = bridge(socket).join(" ");
    const there = await connect({ command: ["sh", "-c", `echo $$ > ${pidFile}; exec ${words}`], token });
    const child = await there.spawn({ command: "sleep", args: ["1000"] });
    const request = refusal(there.request("process.killAndWait", { id: child.id, signal: "SIGCONT", escalate: false }));
    process.kill(Number(readFileSync(pidFile, "utf8")), "SIGKILL");
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 600);
    const { reason, message, error } = await there.closed;
    assert.match(message, /it was ended by SIGKILL/);
    assert.equal([reason, error?.exitCode], ["closed", null]);
    for (const failure of [await request, await refusal(child.exit), await refusal(there.request("server.ping"))])
      assert.equal([failure.code, failure.reason], [-32010, "closed"], failure.message);
  }),
);

told("is ended by its heartbeat where the network says nothing, also when it is not read", async () => {
  for (const script of [
    "",
    // floods a process that nobody takes the output of, and then says nothing
    `if (method === "process.spawn") { answer({ pid: 1 }); for (let seq = 1; seq < 60; seq++) send({ type: "stream", processId: params.id, stream: "stdout", seq, data: "A".repeat(40000) }); }`,
  ]) {
    const there = await connect({ command: peer(script), heartbeatMs: 1000 });
    const pending = refusal(there.request("server.ping"));
    const spawned = script === "" ? undefined : await there.spawn({ command: "x" });
    await spawned?.output[Symbol.asyncIterator]().next(); // and no more
    const { reason, message } = await there.closed;
    assert.is(reason, "not-answering", message);
    assert.match(message, /is silent: nothing came for/);
    assert.is((await pending).reason, "not-answering");
    if (spawned) assert.is((await refusal(spawned.exit)).reason, "not-answering");
  }
});

told("is not ended by it while there are answers, nor with heartbeatMs 0", async () => {
  const lively = await connect({ command: peer("answer({})"), heartbeatMs: 1000 });
  const silent = await connect({ command: peer(""), heartbeatMs: 0 });
  let ended = 0;
  for (const there of [lively, silent]) void there.closed.then(() => ended++);
  await sleep(3500); // three questions
  assert.is(ended, 0);
  for (const there of [lively, silent]) await there.close();
});

told("limits the time of each request, also by a signal", async () => {
  await using there = await connect({ command: peer(""), heartbeatMs: 0, requestTimeoutMs: 100 });
  assert.is((await refusal(there.request("server.ping"))).reason, "not-answering");
  assert.is((await refusal(there.list({ timeoutMs: 10 }))).reason, "not-answering");
  const options = { signal: AbortSignal.timeout(50), timeoutMs: 0 };
  assert.is((await refusal(there.files.stat("/", options))).name, "TimeoutError");
  const attempt = connect({ command: ["sleep", "1000"], signal: AbortSignal.timeout(50) });
  assert.is((await refusal(attempt)).name, "TimeoutError");
  await eventually(() => findRunning("sleep 1000", "children", process.pid).length === 0, "the command has ended");
});

told("leaves an exception of the application to the application, and goes on", () =>
  withDaemon(async ({ socket, token }) => {
    const script = `
      const { connect } = require(${JSON.stringify(builtFile)});
      const seen = [];
      process.on("uncaughtException", ({ message }) => seen.push(message));
      (async () => {
        const there = await connect({ socket: ${JSON.stringify(socket)}, token: ${JSON.stringify(token)} });
        there.on("closed", () => { throw new Error("in closed"); });
        const onOutput = () => { throw new Error("in onOutput"); };
        const child = await there.spawn({ command: "echo", args: ["x"], onOutput });
        const { exitCode } = await child.exit;
        seen.push(exitCode, (await there.request("server.ping")).pong);
        await there.close();
        setImmediate(() => console.log(JSON.stringify(seen)));
      })();`;
    const { stdout, stderr } = spawnSync(process.execPath, ["-e", script], { encoding: "utf8" });
    assert.equal(JSON.parse(stdout || stderr), ["in onOutput", 0, true, "in closed"]);
  }),
);

told("keeps the daemon's reason and hint, also over a bridge", () =>
  withDaemon(async ({ socket, token }) => {
    const over = await connect({ command: bridge(socket), token });
    const loss = over.closed;
    const direct = await connect({ socket, token });
    assert.equal(typeof (await direct.stop()).processes, "number");
    assert.is((await direct.closed).reason, "closed");
    const { reason, hint } = await loss;
    assert.is(reason, "stopped");
    assert.match(hint ?? "", /--serve --socket/);
    const absent = await refusal(connect({ command: bridge(socket), token }));
    assert.is(absent.reason, "stopped");
    assert.match(absent.hint ?? "", /--serve --socket/);
    await holdfast(["--serve", "--socket", socket]); // withDaemon() stops one
  }),
);

told.run();

const failures = suite("diagnose()");

for (const [code, stderr, reason] of [
  [255, "Host key verification failed.", "host-key"],
  [255, "@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.", "host-key"],
  [255, "ssh: Could not resolve hostname nowhere: Name or service not known", "no-such-host"],
  [255, "ssh: connect to host x port 22: No route to host", "no-route"],
  [255, "ssh: connect to host x port 22: Network is unreachable", "no-route"],
  [255, "ssh: connect to host x port 22: Connection refused", "connection-refused"],
  [255, "ssh: connect to host x port 22: Connection timed out", "timed-out"],
  [255, "Timeout, server x not responding.", "timed-out"],
  [255, "ann@x: Permission denied (publickey).", "login-refused"],
  [255, "client_loop: send disconnect: Broken pipe", "closed"],
  [255, "", "command-failed"],
  [127, "bash: line 1: node: command not found", "no-runtime"],
  [127, "sh: 1: node: not found", "no-runtime"],
  [127, "zsh:1: command not found: node", "no-runtime"],
  [127, "fish: Unknown command: node", "no-runtime"],
  [127, "env: 'node': No such file or directory", "no-runtime"],
  [127, "holdfast: error: Cannot run: there is no node, nodejs, bun or deno, neither on the PATH", "no-runtime"],
  [127, "bash: line 1: ./holdfast.js: No such file or directory", "no-file"],
  [2, "sh: 0: cannot open holdfast.js: No such file", "no-file"],
  [1, "Error: Cannot find module '/home/ann/holdfast.js'", "no-file"],
  [126, "bash: line 1: ./holdfast.js: Permission denied", "not-executable"],
  [3, "what?", "command-failed"],
  [0, "", undefined],
] as const) {
  failures(`names exit code ${code} with "${stderr.slice(0, 50)}" ${reason}`, () => {
    const found = diagnose({ code, signal: null }, stderr);
    assert.is(found.reason, reason);
    if (reason !== undefined && reason !== "command-failed") assert.ok(found.hint);
  });
}

failures.run();

const host = suite("a daemon's host");

host("has files: written, read in pieces, listed, and absent", () =>
  withDaemon(async ({ socket, token, directory }) => {
    await using there = await connect({ socket, token });
    const path = join(directory, "files/deep/x");
    assert.is((await there.files.stat(path)).exists, false);
    const missing = await refusal(there.files.read(path));
    assert.equal([missing.errno, missing instanceof HoldfastError], ["ENOENT", true]);
    assert.is((await there.files.write(path, "été", { createDirs: true, mode: 0o600 })).written, 5);
    assert.is(await there.files.readText(path), "été");
    assert.is((await there.files.stat(path)).mode, "-rw-------");
    const bytes = Buffer.alloc(9 << 20, "0123456789abcde");
    await there.files.write(path, bytes);
    assert.ok(bytes.equals(await there.files.read(path)));
    assert.is((await refusal(there.files.read(path, { maxBytes: bytes.length - 1 }))).reason, "too-large");
    assert.ok(bytes.equals(await there.files.read(path, { maxBytes: bytes.length })));
    await there.files.write(path, Buffer.from([0xff]));
    assert.is((await refusal(there.files.readText(path))).errno, "EILSEQ");
    const entries = await there.files.list(join(directory, "files"));
    assert.equal(
      entries.map(({ name, isDir }) => [name, isDir]),
      [["deep", true]],
    );
    assert.equal(await there.files.validate(path), { valid: true, isDir: false });
  }),
);

host("lists, forgets and kills processes, and says how it is", () =>
  withDaemon(async ({ socket, token, pid }) => {
    await using there = await connect({ socket, token });
    const child = await there.spawn({ id: "a", command: "sleep", args: ["1000"] });
    const [listed] = await there.list();
    assert.equal([listed?.id, listed?.pid, listed?.running, listed?.args], ["a", child.pid, true, ["1000"]]);
    const status = await there.status();
    assert.equal([status.pid, status.instanceId, status.processes.length], [pid, there.instanceId, 1]);
    const busy = await refusal(there.stop({ ifIdle: true }));
    assert.is(busy.code < 0, true, busy.message);
    await there.kill("a", "SIGKILL");
    assert.is((await child.exit).signal, "SIGKILL");
    if ((there.capabilities.methods as string[]).includes("process.forget")) {
      await there.forget("a");
      assert.equal(await there.list(), []);
      assert.is((await refusal(there.forget("a"))).code, -32602);
    }
  }),
);

host.run();

const serving = suite("serve()");

serving("starts a daemon that outlives the script, joins it the next time, and replaces it", async () => {
  const directory = mkdtempSync(join(tmpdir(), "holdfast-api-"));
  const socket = join(directory, "s");
  const inScript = (options: object): Served =>
    JSON.parse(
      spawnSync(
        process.execPath,
        [
          "--no-warnings",
          "-e",
          `require(${JSON.stringify(builtFile)}).serve(${JSON.stringify(options)}).then((served) => console.log(JSON.stringify(served)))`,
        ],
        { encoding: "utf8" },
      ).stdout,
    );
  try {
    const started = inScript({ socket });
    assert.is(started.how, "started");
    assert.is(started.tokenFile, `${socket}.token`);
    assert.type(started.lifetime.survivesLogout, "string");
    assert.ok(isAlive(started.pid));
    const joined = await serve({ socket, token: "mine" });
    assert.equal([joined.how, joined.instance, joined.tokenFile], ["joined", started.instance, undefined]);
    const there = await connect({ socket, token: "mine" });
    assert.is(there.instanceId, started.instance);
    there.close();
    const replaced = await serve({ socket, token: "mine", replace: true });
    assert.equal([replaced.how, replaced.pid === started.pid], ["started", false]);
    assert.is((await refusal(serve({ socket: `/${"x".repeat(200)}` }))).message.slice(0, 16), "Cannot listen on");
  } finally {
    await holdfast(["--stop", "--now", "--socket", socket]);
    await removeAll(directory);
  }
});

serving.run();
