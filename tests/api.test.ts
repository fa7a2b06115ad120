// time limit: 120 s
/** The API, as a script has it that imports the built file: over a socket, and over a command, as ssh would be one. */

import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import type * as Api from "../api.ts";
import type { Connection, ConnectOptions, HoldfastError, Output, Served } from "../library.ts";
import type { TestDaemon } from "./daemon.ts";
import { builtFile, eventually, holdfast, isAlive, withDaemon } from "./daemon.ts";

const { connect, serve } = createRequire("/")(builtFile) as typeof Api;

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

async function refusal(promise: Promise<unknown>): Promise<HoldfastError> {
  try {
    await promise;
  } catch (error) {
    return error as HoldfastError;
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
      await eventually(
        () => spawnSync("pgrep", ["-P", String(process.pid), "sleep"]).status !== 0,
        "the command has ended",
      );
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
    rmSync(directory, { recursive: true, force: true });
  }
});

serving.run();
