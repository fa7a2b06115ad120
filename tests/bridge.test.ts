// time limit: 300 s; long
/** --bridge of the built file: bytes in, bytes out, and how it ends; what it says when there is no daemon, and when it starts one. */

import { spawn, spawnSync } from "node:child_process";
import { chmodSync, closeSync, existsSync, openSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { beginsWithId, idsIn } from "../bridge.ts";
import { createFollower, follow, partOf } from "../frame.ts";
import type { Site } from "./daemon.ts";
import {
  asNobody,
  builtFile,
  builtWith,
  busyMs,
  filesIn,
  forAnyone,
  frameOf,
  isAlive,
  isRoot,
  lanesOf,
  messagesIn,
  peerOf,
  request,
  rounds,
  sideBySide,
  sleep,
  statOf,
  until,
  withDirectory,
} from "./daemon.ts";

const lanes = lanesOf(2);
const pong = (id: unknown) => ({ jsonrpc: "2.0", id, result: { pong: true } });
const rssOf = (pid: number): number =>
  Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1] ?? 0) / 1024;

/** How many connections the daemon has had. */
const connectionsOf = (site: Site): number => site.log().split("New connection from: @").length - 1;

const relay = suite("--bridge");
const relays = sideBySide(relay, lanes);

relays("passes native bytes both ways, however they are cut, and drains the answers after stdin's end", () =>
  withDirectory(async (site) => {
    await site.serve();
    const requests = Array.from({ length: 2000 }, (_, id) =>
      request("server.ping", { text: "é😀\n".repeat(id % 50) }, site.token, id),
    );
    const { code, stdout, stderr } = await site.run(["--bridge"], { stdin: Buffer.concat(requests.map(frameOf)) });
    assert.equal([code, stderr], [0, ""]);
    assert.equal(
      Buffer.compare(stdout, Buffer.concat(requests.map(({ id }) => frameOf(pong(id))))),
      0,
      "byte for byte",
    );
    const bridge = site.bridge();
    for (const byte of frameOf(request("server.ping", {}, site.token))) {
      bridge.write(Buffer.from([byte]));
      await sleep(1);
    }
    assert.equal(await bridge.next(), pong(1));
    bridge.child.stdin.end();
    assert.equal([(await bridge.ended).length, (await bridge.exit).code], [0, 0]);
  }),
);

relays("leaves a stdout that is a socket to who has it, too", () =>
  withDirectory(async (site) => {
    await site.serve();
    const ping = JSON.stringify(request("server.ping", {}, site.token));
    const line = `echo '${ping}' | "$0" ${builtFile} --bridge --socket ${site.socket}; echo and $?`;
    const { stdout } = await site.command(["sh", "-c", line, process.execPath]); // of a child of node's it is a socket
    assert.is(stdout.toString(), `${JSON.stringify(pong(1))}\nand 0\n`);
  }),
);

relays("passes a large answer byte for byte", () =>
  withDirectory(async (site) => {
    await site.serve();
    const text = "0123456789é".repeat(400_000);
    writeFileSync(join(site.directory, "large"), text);
    const { code, stdout } = await site.run(["--bridge"], {
      stdin: frameOf(request("files.read", { path: join(site.directory, "large"), maxBytes: 8 << 20 }, site.token)),
    });
    const [{ result }] = messagesIn(stdout);
    assert.equal([code, result.content === text], [0, true]);
  }),
);

/** What a peer that speaks lines writes, and the answers' ids and codes. */
const lines: [what: string, text: (line: string) => string, ids: unknown[]][] = [
  ["a line", (line) => `${line}\n`, [1]],
  ["a line that ends in CRLF", (line) => `${line}\r\n`, [1]],
  ["a last line without a newline", (line) => line, [1]],
  ["blank lines around", (line) => `\n\r\n${line}\n\n\r\n${line}\n\n`, [1, 1]],
  ["a line that is no JSON", (line) => `hello\n${line}\n`, [null, 1]],
  ["spaces around", (line) => `  ${line} \t\n`, [1]],
];
for (const [what, text, ids] of lines) {
  relays(`re-frames ${what}`, () =>
    withDirectory(async (site) => {
      await site.serve();
      const { code, stdout } = await site.run(["--bridge"], {
        stdin: text(JSON.stringify(request("server.ping", {}, site.token))),
      });
      assert.is(code, 0);
      const answers = stdout.toString().split("\n");
      assert.is(answers.pop(), "");
      assert.equal(
        answers.map((line) => JSON.parse(line).id),
        ids,
      );
    }),
  );
}

relays("answers a line over the limit with its size, and goes on", () =>
  withDirectory(async (site) => {
    await site.serve();
    const bridge = site.bridge([], "lines");
    bridge.write(`${"x".repeat(16_777_216)}\n`);
    const { id, error } = await bridge.next(10_000);
    assert.equal([id, error.code], [null, -32600]);
    assert.match(error.message, /its body has 16777216 bytes, at most 16777215 are accepted/);
    assert.equal(await bridge.ask("server.ping", {}, site.token), pong(1));
    bridge.child.stdin.end();
    assert.is((await bridge.exit).code, 0);
  }),
);

relays("ends at once, with 0 and without a word, where stdin has ended before", () =>
  withDirectory(async (site) => {
    await site.serve();
    const { code, stdout, stderr, ms } = await site.run(["--bridge"]);
    assert.equal([code, stdout.length, stderr], [0, 0, ""]);
    assert.ok(ms < busyMs(2000), `it took ${ms} ms`);
    const closed = await site.command([
      "sh",
      "-c",
      `exec '${process.execPath}' '${builtFile}' --bridge --socket '${site.socket}' <&-`,
    ]);
    assert.is(closed.code, 0);
  }),
);

relays("takes stdin and stdout that are files", () =>
  withDirectory(async (site) => {
    await site.serve();
    writeFileSync(join(site.directory, "in"), frameOf(request("server.ping", {}, site.token)));
    const { code } = await site.command([
      "sh",
      "-c",
      `exec '${process.execPath}' '${builtFile}' --bridge --socket '${site.socket}' < '${site.directory}/in' > '${site.directory}/out'`,
    ]);
    assert.is(code, 0);
    assert.equal(messagesIn(readFileSync(join(site.directory, "out"))), [pong(1)]);
  }),
);

relays("holds back a peer that writes 50 MB before it reads, without a deadlock or growing", () =>
  withDirectory(async (site) => {
    const { pid } = await site.serve();
    const bridge = spawn(process.execPath, [builtFile, "--bridge", "--socket", site.socket], { env: site.env });
    const frame = frameOf(request("server.ping", { text: "x".repeat(400) }, site.token, 123_456_789));
    const count = Math.ceil(50e6 / frame.length);
    const chunk = Buffer.concat(Array.from({ length: 1000 }, () => frame));
    let written = 0;
    let waiting = false;
    const write = (): void => {
      while (written < count && !waiting) {
        const some = Math.min(1000, count - written);
        written += some;
        if (!bridge.stdin.write(chunk.subarray(0, some * frame.length))) {
          waiting = true;
          bridge.stdin.once("drain", () => {
            waiting = false;
            write();
          });
        }
      }
      if (written === count) bridge.stdin.end();
    };
    write();
    let most = 0;
    const watch = setInterval(() => (most = Math.max(most, isAlive(bridge.pid!) ? rssOf(bridge.pid!) : 0)), 20);
    try {
      await sleep(1500); // it writes, nobody reads
      let received = 0;
      bridge.stdout.on("data", (some: Buffer) => (received += some.length));
      const code = await new Promise((done) => bridge.once("close", done));
      assert.equal([code, received], [0, count * frameOf(pong(123_456_789)).length]);
      assert.ok(most > 20 && most < 150, `the bridge had ${most} MiB`);
      assert.ok(rssOf(pid) < 250, `the daemon has ${rssOf(pid)} MiB`);
    } finally {
      clearInterval(watch);
    }
  }),
);

const ends = suite("--bridge ends");
const ended = sideBySide(ends, lanes);

/** A bridge that relays, and what ends it. */
const causes: [what: string, cause: (bridge: ReturnType<Site["bridge"]>, token: string) => unknown][] = [
  ["stdin's end", (bridge) => bridge.child.stdin.end()],
  [
    "nobody reading what it writes (EPIPE)",
    (bridge, token) => {
      bridge.child.stdout.destroy();
      bridge.send(request("server.ping", {}, token)); // the answer finds no reader
    },
  ],
  ["SIGHUP", (bridge) => bridge.child.kill("SIGHUP")],
  ["SIGTERM", (bridge) => bridge.child.kill("SIGTERM")],
];
for (const [what, cause] of causes) {
  ended(`by ${what}, and leaves the daemon as it was`, () =>
    withDirectory(async (site) => {
      const { pid } = await site.serve();
      const bridge = site.bridge();
      assert.equal(await bridge.ask("server.ping", {}, site.token), pong(1));
      cause(bridge, site.token);
      await until("it has ended", () => !isAlive(bridge.child.pid!), busyMs(3000));
      await until("its connection is closed", () => /Connection closed: @\n$/.test(site.log()));
      assert.equal(site.processes(), [pid]);
    }),
  );
}

for (const daemon of [true, false]) {
  ended(`when its parent has gone, though its channel stays open${daemon ? "" : ", also without a daemon"}`, () =>
    withDirectory(async (site) => {
      if (daemon) await site.serve();
      const before = daemon ? connectionsOf(site) : 0;
      const [input, output] = [join(site.directory, "in"), join(site.directory, "out")];
      spawnSync("mkfifo", [input, output]);
      const descriptors = [openSync(input, "r+"), openSync(output, "r+")]; // so that neither pipe ever ends
      try {
        const script = `'${process.execPath}' '${builtFile}' --bridge --socket '${site.socket}' <'${input}' >'${output}' 2>'${site.directory}/err' & echo $!; exec sleep 100`;
        const shell = spawn("sh", ["-c", script], { env: site.env, stdio: ["ignore", "pipe", "ignore"] });
        const bridge = Number(await new Promise((done) => shell.stdout.once("data", done)));
        await until("it relays, or knows that there is nothing to relay to", () =>
          daemon
            ? connectionsOf(site) > before && statOf(bridge)?.[0] === "S"
            : existsSync(`${site.directory}/err`) && readFileSync(`${site.directory}/err`, "utf8").includes("hint"),
        );
        await sleep(200);
        shell.kill("SIGKILL");
        await until("the bridge has ended", () => !isAlive(bridge), busyMs(6000));
      } finally {
        descriptors.forEach(closeSync);
      }
    }),
  );
}

for (const framing of ["native", "lines"] as const) {
  ended(`when the daemon is killed: with one message of why, in ${framing} framing, then 69`, () =>
    withDirectory(async (site) => {
      const { pid } = await site.serve();
      const bridge = site.bridge([], framing);
      assert.equal(await bridge.ask("server.ping", {}, site.token), pong(1));
      process.kill(pid, "SIGKILL");
      const lost = await bridge.next();
      assert.equal([lost.type, lost.event, lost.reason], ["bridge", "lost", "crashed"]);
      assert.match(lost.message, /^Cannot reach a daemon: the daemon \(pid \d+, started at .*\) is gone/);
      assert.ok(lost.hint);
      const { code, stderr } = await bridge.exit;
      assert.equal([code, (await bridge.ended).length], [69, 0], "one message, and no more");
      assert.match(stderr, /^holdfast: error: Cannot reach a daemon: .*\nholdfast: hint: /);
    }),
  );
}

ended("when the daemon is stopped: with a message that says so", () =>
  withDirectory(async (site) => {
    await site.serve();
    const bridge = site.bridge();
    assert.equal(await bridge.ask("server.ping", {}, site.token), pong(1));
    assert.is((await site.run(["--stop"])).code, 0);
    const lost = await bridge.next();
    assert.equal([lost.event, lost.reason, (await bridge.exit).code], ["lost", "stopped", 69]);
  }),
);

/** A process that SIGTERM does not end, and a question that is answered when it has been killed for that. */
const slow = (id: string, timeoutMs: number, onTerm = "") => ({
  spawn: request("process.spawn", {
    id,
    command: "sh",
    args: ["-c", `trap '${onTerm}' TERM; echo up; while :; do sleep 0.1; done`],
  }),
  end: request("process.killAndWait", { id, timeoutMs }, undefined, `${id}'s end`),
});

ended("when all is answered that it owes, however long after stdin's end", () =>
  withDirectory(async (site) => {
    await site.serve();
    const { spawn: begin, end } = slow("a", 3000);
    const bridge = site.bridge();
    bridge.send({ ...begin, auth: site.token });
    while ((await bridge.next()).stream !== "stdout"); // the trap is set
    bridge.send({ ...end, auth: site.token });
    bridge.child.stdin.end();
    let answer: any;
    for (answer = await bridge.next(); answer.id !== "a's end"; answer = await bridge.next(10_000));
    assert.equal(answer.result, { found: true, died: true, escalated: true });
    assert.is((await bridge.exit).code, 0);
  }),
);

ended("when its whole answer is taken, by a client that is slow", () =>
  withDirectory(async (site) => {
    await site.serve();
    writeFileSync(join(site.directory, "large"), "x".repeat(6_000_000));
    const child = spawn(process.execPath, [builtFile, "--bridge", "--socket", site.socket], { env: site.env });
    child.stdin.end(
      frameOf(request("files.read", { path: join(site.directory, "large"), maxBytes: 8 << 20 }, site.token)),
    );
    await sleep(4000); // nobody reads: a pipe holds 64 KiB of it
    const chunks: Buffer[] = [];
    child.stdout.on("data", (chunk: Buffer) => chunks.push(chunk));
    const code = await new Promise((done) => child.once("close", done));
    const [{ result }] = messagesIn(Buffer.concat(chunks));
    assert.equal([code, result.content.length], [0, 6_000_000]);
  }),
);

for (const framing of ["native", "lines"] as const) {
  ended(
    `with an answer to whatever has none, when the daemon is killed after its first word, in ${framing} framing`,
    () =>
      withDirectory(async (site) => {
        const { pid } = await site.serve();
        const { spawn: begin, end } = slow("a", 30_000);
        const bridge = site.bridge([], framing);
        assert.equal(await bridge.ask("server.ping", {}, site.token), pong(1));
        bridge.send({ ...begin, auth: site.token });
        while ((await bridge.next()).stream !== "stdout");
        bridge.send({ ...end, auth: site.token });
        bridge.send([
          { ...end, id: 7, auth: site.token },
          { ...end, id: "8", auth: site.token },
        ]);
        assert.equal(await bridge.ask("server.ping", {}, site.token, 9), pong(9)); // it has read them all
        if (framing === "lines") bridge.child.stdin.end();
        process.kill(pid, "SIGKILL");
        const first = await bridge.next();
        assert.equal([first.id, first.error.code, first.error.data.reason], ["a's end", -32010, "crashed"]);
        assert.match(first.error.message, /; what was asked may have been carried out$/);
        assert.equal(
          (await bridge.next()).map(({ id }: { id: unknown }) => id),
          [7, "8"],
        );
        if (framing === "native") assert.is((await bridge.next()).event, "lost");
        assert.equal([(await bridge.exit).code, (await bridge.ended).length], [69, 0]);
        assert.is((await site.run(["--stop", "--now"])).stdout.toString(), "stopped 1\n"); // what it has left
      }),
  );
}

ended("when an ancestor has gone, though its parent and its channel are there", () =>
  withDirectory(async (site) => {
    await site.serve();
    const [input, output] = [join(site.directory, "in"), join(site.directory, "out")];
    spawnSync("mkfifo", [input, output]);
    const descriptors = [openSync(input, "r+"), openSync(output, "r+")];
    const script = `'${process.execPath}' '${builtFile}' --bridge --socket '${site.socket}' <'${input}' >'${output}' & echo $!; wait`;
    const before = connectionsOf(site);
    const outer = spawn("sh", ["-c", `sh -c "$1" & wait`, "sh", script], {
      env: site.env,
      stdio: ["ignore", "pipe", "ignore"],
    });
    try {
      const bridge = Number(await new Promise((done) => outer.stdout.once("data", done)));
      await until("it relays", () => connectionsOf(site) > before);
      const parent = Number(statOf(bridge)![1]);
      await sleep(200);
      outer.kill("SIGKILL");
      await until("the bridge has ended", () => !isAlive(bridge), 10_000);
      assert.not.equal(parent, outer.pid);
    } finally {
      outer.kill("SIGKILL");
      descriptors.forEach(closeSync);
    }
  }),
);

for (const framing of ["native", "lines"] as const) {
  ended(`with an answer, when the daemon falls silent after its first word, in ${framing} framing`, () =>
    withDirectory(async (site) => {
      const { pid } = await site.serve();
      const quick = builtWith(site.directory, { silenceMs: 1500, answerMs: 1500 });
      const child = spawn(process.execPath, [quick, "--bridge", "--socket", site.socket], { env: site.env });
      const bridge = peerOf(child.stdout, child.stdin, framing, "the bridge");
      assert.equal(await bridge.ask("server.ping", {}, site.token), pong(1));
      process.kill(pid, "SIGSTOP");
      bridge.send(request("server.ping", {}, site.token, 2));
      const { id, error } = await bridge.next(20_000);
      assert.equal([id, error.code, error.data.reason], [2, -32010, "not-answering"]);
      assert.is(await new Promise((done) => child.once("exit", done)), 69);
      assert.is(statOf(pid)?.[0], "T");
      process.kill(pid, "SIGCONT");
    }),
  );
}

ended("when another daemon takes its place: with that word, and an answer to whatever has none", () =>
  withDirectory(async (site) => {
    await site.serve();
    const { spawn: begin, end } = slow("a", 30_000);
    const bridge = site.bridge();
    bridge.send({ ...begin, auth: site.token });
    while ((await bridge.next()).stream !== "stdout");
    bridge.send({ ...end, auth: site.token });
    assert.equal(await bridge.ask("server.ping", {}, site.token), pong(1));
    await site.serve(["--replace"]);
    const { id, error } = await bridge.next(20_000);
    assert.equal([id, error.code, error.data.reason], ["a's end", -32010, "replaced"], error.message);
    const lost = await bridge.next();
    assert.equal([lost.event, lost.reason], ["lost", "replaced"]);
    await bridge.exit;
  }),
);

ended("when a client says nothing for too long, with a hint where the token is", () =>
  withDirectory(async (site) => {
    const quick = builtWith(site.directory, { strangerMs: 2000 });
    await site.serve([], { file: quick });
    const bridge = site.bridge();
    const lost = await bridge.next(20_000);
    assert.equal([lost.event, lost.reason], ["lost", "closed"]);
    assert.match(
      lost.hint,
      /authenticates within 60 s, with the token that --serve has named; --bridge --as-owner needs none$/,
    );
    assert.is((await bridge.exit).code, 1);
  }),
);

const absent = suite("--bridge without a daemon");
const alone = sideBySide(absent, lanes);

/** How the daemon went, and the reason given for it. */
const reasons: [what: string, prepare: (site: Site) => unknown, reason: string, words: RegExp, code?: number][] = [
  ["was never started", () => {}, "never-started", /no daemon has been started at/],
  [
    "was stopped",
    async (site) => {
      await site.serve();
      await site.run(["--stop"]);
    },
    "stopped",
    /was stopped on purpose at /,
  ],
  ["was ended by a person", (site) => signalled(site, ["SIGTERM"]), "stopped", /was ended at .* by SIGTERM/],
  ["was killed", (site) => signalled(site, ["SIGKILL"]), "crashed", /is gone without a word/],
  [
    "was killed at logout",
    (site) => signalled(site, ["SIGKILL"]).then(() => noteEnd(site, "killed-at-logout")),
    "killed-at-logout",
    /was ended by systemd-logind/,
  ],
  [
    "went with the user manager",
    (site) => signalled(site, ["SIGKILL"]).then(() => noteEnd(site, "user-manager-stopped")),
    "user-manager-stopped",
    /user manager/,
  ],
  [
    "went with the host",
    (site) => signalled(site, ["SIGKILL"]).then(() => change(site, { bootId: "an earlier one" })),
    "rebooted",
    /has been booted again since/,
  ],
  [
    "is on another host",
    (site) =>
      signalled(site, ["SIGKILL"]).then(() =>
        change(site, { host: "elsewhere", bootId: "another", machineId: "0".repeat(32) }),
      ),
    "other-host",
    /was started on host "elsewhere"/,
  ],
];

async function signalled(site: Site, signals: NodeJS.Signals[]): Promise<void> {
  const { pid } = await site.serve();
  for (const signal of signals) process.kill(pid, signal);
  await until("it has ended", () => !isAlive(pid));
}

/** As it notes by itself where systemd ends it. */
function noteEnd(site: Site, reason: string): void {
  change(site, { ended: { at: Date.now(), reason, detail: "SIGCONT, SIGTERM: by systemd" } });
}

function change(site: Site, changes: object): void {
  writeFileSync(`${site.socket}.record`, JSON.stringify({ ...site.record(), ...changes }), { mode: 0o600 });
}

for (const [what, prepare, reason, words] of reasons) {
  alone(`answers -32010 "${reason}" where the daemon ${what}, then ends with 69`, () =>
    withDirectory(async (site) => {
      await prepare(site);
      const before = filesIn(site.directory);
      const bridge = site.bridge(["--no-start"]);
      const { id, error } = await bridge.ask("server.capabilities", {}, site.token, "a string");
      assert.equal([id, error.code, error.data.reason], ["a string", -32010, reason]);
      assert.match(error.message, words);
      assert.ok(error.data.hint.length > 5);
      const { code, stderr } = await bridge.exit;
      assert.equal([code, stderr], [69, `holdfast: error: ${error.message}\nholdfast: hint: ${error.data.hint}\n`]);
      assert.equal([filesIn(site.directory), site.processes()], [before, []]);
    }),
  );
}

const another = isRoot ? alone : (name: string): void => absent.skip(name);
another("says that it may not use the socket of another", () =>
  withDirectory(async (site) => {
    await site.serve();
    chmodSync(site.directory, 0o755);
    const { stdout, stderr } = await site.command([...asNobody, ...forAnyone(), "--bridge", "--socket", site.socket], {
      stdin: frameOf(request("server.ping")),
      env: { XDG_STATE_HOME: "/nonexistent" },
    });
    const [{ error }] = messagesIn(stdout);
    assert.equal([error.code, error.data.reason], [-32010, "permission"]);
    assert.match(stderr, /permission denied \(EACCES\)/);
  }),
);

/** What a client writes, and what it reads, as ids; an array is a batch's answer. */
const shapes: [what: string, stdin: string | Buffer, ids: unknown[]][] = [
  ["a native request", frameOf(request("server.ping")), [1]],
  [
    "two native requests at once",
    Buffer.concat([frameOf(request("server.ping", {}, "t", 7)), frameOf(request("server.ping", {}, "t", "b"))]),
    [7, "b"],
  ],
  ["a line", `${JSON.stringify(request("server.ping"))}\n`, [1]],
  ["a line without its newline", JSON.stringify(request("server.ping")), [1]],
  ["a line with an id of null", `${JSON.stringify(request("server.ping", {}, "t", null))}\n`, [null]],
  ["a notification and a request", '{"jsonrpc":"2.0","method":"a.b"}\n{"jsonrpc":"2.0","method":"a.b","id":2}\n', [2]],
  ["a notification alone", '{"jsonrpc":"2.0","method":"a.b"}\n', []],
  ["what is no JSON", "hello\n", [null]],
  [
    "a batch",
    `${JSON.stringify([request("a.b", {}, "t", 1), request("a.b", {}, "t", "x"), { jsonrpc: "2.0", method: "a.b" }])}\n`,
    [[1, "x"]],
  ],
  ["a native batch", frameOf([request("a.b")]), [[1]]],
  ["nothing", "", []],
];
for (const [what, stdin, ids] of shapes) {
  alone(`answers ${what} in its own shape and framing, fast`, () =>
    withDirectory(async (site) => {
      const { code, stdout, stderr, ms } = await site.run(["--bridge"], { stdin });
      const answers = Buffer.isBuffer(stdin)
        ? messagesIn(stdout)
        : stdout
            .toString()
            .split("\n")
            .filter(Boolean)
            .map((line) => JSON.parse(line));
      assert.equal(
        answers.map((answer) => (Array.isArray(answer) ? answer.map(({ id }) => id) : answer.id)),
        ids,
      );
      for (const { error } of answers.flat()) assert.is(error.code, -32010);
      assert.is(code, 69);
      assert.match(
        stderr,
        /^holdfast: error: Cannot reach a daemon: no daemon has been started at .*\nholdfast: hint: .*--serve --socket '.*'\n$/,
      );
      assert.ok(ms < busyMs(3000), `it took ${ms} ms`);
      assert.equal(filesIn(site.directory), ["given.token"]);
    }),
  );
}

const healing = suite("--bridge heals");
const heals = sideBySide(healing, lanes);

for (const [what, reason] of [
  ["kill -9", undefined],
  ["a logout", "killed-at-logout"],
  ["the user manager's end", "user-manager-stopped"],
  ["a shutdown", "host-shutdown"],
] as const) {
  heals(`after ${what}: the next one starts a daemon that knows the old token`, () =>
    withDirectory(async (site) => {
      const first = await site.serve();
      await signalled(site, ["SIGKILL"]);
      if (reason) noteEnd(site, reason);
      const bridge = site.bridge();
      const { result } = await bridge.ask("server.capabilities", {}, site.token);
      assert.is.not(result.instanceId, first.instance);
      assert.is((await bridge.ask("server.ping", {}, "another token")).error.code, -32001);
      bridge.child.stdin.end();
      const { code, stderr } = await bridge.exit;
      assert.is(code, 0);
      assert.match(stderr, /^holdfast: .*: started it again \(pid \d+, .*\)\n$/);
      const { pid } = site.record();
      assert.equal(site.processes(), [pid], "it stays when the bridge has ended");
      assert.is(statOf(pid)![3], String(pid), "in a session of its own");
      const second = await site.run(["--bridge"], { stdin: frameOf(request("server.capabilities", {}, site.token)) });
      assert.equal([messagesIn(second.stdout)[0].result.instanceId, second.stderr], [result.instanceId, ""]);
      assert.is(
        filesIn(site.directory).filter((name) => name.startsWith(".")).length,
        1,
        "the dead one's name is cleared away",
      );
    }),
  );
}

heals("with twenty at once: one daemon, and twenty answers", () =>
  withDirectory(async (site) => {
    const first = await site.serve();
    process.kill(first.pid, "SIGKILL");
    const outcomes = await Promise.all(
      Array.from({ length: 20 }, () =>
        site.run(["--bridge"], { stdin: frameOf(request("server.capabilities", {}, site.token)), timeoutMs: 30_000 }),
      ),
    );
    const instances = outcomes.map(
      ({ stdout, stderr }) => messagesIn(stdout)[0]?.result?.instanceId ?? `${stdout} ${stderr}`,
    );
    assert.equal([...new Set(instances)], [site.record().instance]);
    assert.equal(
      outcomes.map(({ code }) => code),
      outcomes.map(() => 0),
    );
    assert.equal(site.processes(), [site.record().pid]);
    assert.is(outcomes.filter(({ stderr }) => stderr.includes("started it again")).length, 1);
  }),
);

heals("sends again what nobody has read, and goes on", () =>
  withDirectory(async (site) => {
    const { pid, instance } = await site.serve();
    process.kill(pid, "SIGSTOP"); // it is connected to, and takes nothing
    const bridge = site.bridge();
    bridge.send(request("server.capabilities", {}, site.token, "first"));
    const half = frameOf(request("server.ping", { text: "é".repeat(1000) }, site.token, "second"));
    await sleep(500);
    process.kill(pid, "SIGKILL");
    const { id, result } = await bridge.next(20_000);
    assert.equal([id, result.instanceId !== instance, result.instanceId], ["first", true, site.record().instance]);
    bridge.write(half.subarray(0, 900));
    await sleep(50);
    bridge.write(half.subarray(900));
    assert.equal(await bridge.next(), pong("second"));
    bridge.child.stdin.end();
    assert.is((await bridge.exit).code, 0);
  }),
);

for (const framing of ["native", "lines"] as const) {
  heals(
    `and answers what the dead one had read before its first word, in ${framing} framing: it may have been carried out`,
    () =>
      withDirectory(async (site) => {
        const { pid } = await site.serve();
        const { spawn: begin, end } = slow("a", 30_000, "echo told");
        const other = site.bridge();
        other.send({ ...begin, auth: site.token });
        while ((await other.next()).stream !== "stdout");
        const bridge = site.bridge([], framing);
        bridge.send({ ...end, auth: site.token });
        assert.is((await other.next(20_000)).type, "stream", "the daemon has read it");
        process.kill(pid, "SIGKILL");
        const { id, error } = await bridge.next(20_000);
        assert.equal([id, error.code, error.data.reason], ["a's end", -32010, "crashed"]);
        assert.match(error.message, /; what was asked may have been carried out$/);
        assert.equal(await bridge.ask("server.ping", {}, site.token, "next"), pong("next"));
        bridge.child.stdin.end();
        assert.is((await bridge.exit).code, 0);
      }),
  );
}

heals(
  `each of ${rounds(500, 10)} that come around a kill -9: an answer, or a new daemon; no silence, and no false "not-answering"`,
  () =>
    withDirectory(async (site) => {
      const perKill = 10;
      for (let round = 0; round < rounds(50, 1); round++) {
        const { pid } = await site.serve();
        const kill = sleep(250 + Math.random() * 100).then(() => process.kill(pid, "SIGKILL"));
        const outcomes = await Promise.all(
          Array.from({ length: perKill }, async () => {
            await sleep(Math.random() * 400);
            return site.run(["--bridge"], {
              stdin: frameOf(request("server.ping", {}, site.token)),
              timeoutMs: 60_000,
            });
          }),
        );
        await kill;
        for (const { code, stdout, stderr } of outcomes) {
          const [message, ...more] = messagesIn(stdout);
          const words = `${code} ${JSON.stringify(message)} ${stderr}`;
          assert.is(message?.id, 1, words);
          if (message.error) assert.match(message.error.message, /may have been carried out/, words);
          // it may be killed after its answer, before stdin's end is seen
          if (more.length > 0) assert.equal([more.length, more[0].event, code], [1, "lost", 69], words);
          else assert.ok(message.error || (message.result.pong && code === 0), words);
        }
      }
    }),
);

heals("not a daemon that was stopped, ended by a person, or never there", () =>
  withDirectory(async (site) => {
    const absence = async (reason: string): Promise<void> => {
      const { code, stdout } = await site.run(["--bridge"], { stdin: frameOf(request("server.ping", {}, site.token)) });
      assert.equal([code, messagesIn(stdout)[0].error.data.reason, site.processes()], [69, reason, []]);
    };
    await absence("never-started");
    await site.serve();
    assert.is((await site.run(["--stop"])).code, 0);
    await absence("stopped");
    await signalled(site, ["SIGTERM"]);
    await absence("stopped");
  }),
);

heals("not one that is stopped by SIGSTOP: it is neither killed nor replaced, and answers when it goes on", () =>
  withDirectory(async (site) => {
    const { pid, instance } = await site.serve();
    process.kill(pid, "SIGSTOP");
    const bridges = [site.bridge(), site.bridge(), site.bridge()];
    for (const bridge of bridges) bridge.send(request("server.capabilities", {}, site.token));
    await sleep(1000);
    assert.is(statOf(pid)?.[0], "T");
    assert.is(site.record().instance, instance);
    process.kill(pid, "SIGCONT");
    for (const bridge of bridges) {
      assert.is((await bridge.next()).result.instanceId, instance);
      bridge.child.stdin.end();
      assert.is((await bridge.exit).code, 0);
    }
  }),
);

heals("in words where it cannot: the daemon's own reason, and the old one's", () =>
  withDirectory(async (site) => {
    const { pid } = await site.serve();
    process.kill(pid, "SIGKILL");
    await until("it is gone", () => !isAlive(pid));
    writeFileSync(`${site.socket}.claim`, "garbage", { mode: 0o600 });
    const bridge = site.bridge();
    bridge.send(request("server.ping", {}, site.token));
    const { error } = await bridge.next(20_000);
    assert.equal([error.code, error.data.reason], [-32010, "crashed"]);
    assert.match(
      error.message,
      /is gone without a word.*; and none could be started: .*a file that is no claim of ours/,
    );
    assert.is((await bridge.exit).code, 69);
  }),
);

const owner = suite("--bridge --as-owner");
const owned = sideBySide(owner, lanes);

for (const framing of ["native", "lines"] as const) {
  owned(`needs no token, in ${framing} framing, and shows nothing of what it said itself`, () =>
    withDirectory(async (site) => {
      const { pid } = await site.serve();
      const bridge = site.bridge(["--as-owner"], framing);
      assert.equal(await bridge.ask("server.ping"), pong(1));
      bridge.child.stdin.end();
      assert.equal([(await bridge.ended).length, (await bridge.exit).code], [0, 0]);
      process.kill(pid, "SIGKILL");
      const healed = site.bridge(["--as-owner"], framing);
      assert.equal(await healed.ask("server.ping"), pong(1), "also of a daemon that it has started");
      healed.child.stdin.end();
      assert.is((await healed.exit).code, 0);
      assert.not.match(site.log(), /nauthorized/);
    }),
  );
}

owned("sends the key to nobody but the socket of the record", () =>
  withDirectory(async (site) => {
    const { pid } = await site.serve();
    const record = site.record();
    change(site, { socket: { ...record.socket, ino: record.socket.ino + 1 } });
    const bridge = site.bridge(["--as-owner"]);
    const { id, error } = await bridge.ask("server.ping");
    assert.equal([id, error.code], [1, -32010]);
    assert.match(
      error.message,
      /^Cannot authenticate as the daemon's owner: .*the socket is not the one of its record/,
    );
    assert.is((await bridge.exit).code, 77);
    writeFileSync(`${site.socket}.record`, JSON.stringify(record, undefined, 1), { mode: 0o600 });
    assert.ok(isAlive(pid));
  }),
);

const terminals = suite("--bridge in a terminal");
const hasScript = spawnSync("script", ["--version"]).status === 0;

(hasScript ? terminals : terminals.skip)("passes bytes as they are, echoes nothing, and puts the terminal back", () =>
  withDirectory(async (site) => {
    await site.serve();
    const before = connectionsOf(site);
    const line = `exec 2>&1; stty -a | md5sum; '${process.execPath}' '${builtFile}' --bridge --socket '${site.socket}'; stty -a | md5sum; stty sane`;
    const child = spawn("script", ["-q", "-c", line, "/dev/null"], { env: site.env, cwd: "/" });
    const over = new Promise((done) => child.once("close", done));
    let shown = "";
    child.stdout.on("data", (chunk: Buffer) => (shown += chunk.toString("latin1")));
    await until("it relays", () => connectionsOf(site) > before, 10_000);
    const text = "y".repeat(6000); // a terminal cuts at 4095
    child.stdin.write(`${JSON.stringify(request("server.ping", { text }, site.token))}\n`);
    await until("the answer", () => shown.includes('"pong":true'), 10_000).catch((error: Error) => {
      throw new Error(`${error.message}: ${JSON.stringify(shown)}`);
    });
    assert.is(shown.includes(site.token), false);
    await site.run(["--stop", "--now"]);
    await until("it has ended", () => /[0-9a-f]{32} .*[0-9a-f]{32} /s.test(shown), 10_000);
    const [first, last] = shown.match(/[0-9a-f]{32}(?= )/g)!;
    assert.is(first, last);
    child.kill();
    await over;
  }),
);

const parts = suite("partOf()");
const frames = [{ id: 1 }, { id: 2 }, { id: 3 }].map(frameOf);

/** What was written, how the connection broke, and how many requests may have been read. */
const breaks: [what: string, writes: Buffer[], error: string | undefined, read: number][] = [
  ["all of it read, without an error", frames, undefined, 3],
  ["the last one not read to its end, after a reset", frames, "ECONNRESET", 2],
  ["none read, where the only write failed", [Buffer.concat(frames)], "EPIPE", 0],
  ["two read, where the write of the third failed", frames, "EPIPE", 2],
  ["half a frame left over", [...frames.slice(0, 2), frames[2]!.subarray(0, 6)], undefined, 2],
  ["half a frame left over, of which nobody read the end", [frames[0]!, frames[1]!.subarray(0, 3)], "ECONNRESET", 1],
  ["nothing", [], "ECONNRESET", 0],
];
for (const [what, writes, error, count] of breaks) {
  parts(`finds ${what}`, () => {
    const { read, unread } = partOf(writes, error);
    assert.equal(
      read.map((body) => JSON.parse(body.toString()).id),
      [1, 2, 3].slice(0, count),
    );
    assert.is(Buffer.compare(unread, Buffer.concat(writes).subarray(Buffer.concat(frames.slice(0, count)).length)), 0);
  });
}

const ids = suite("idsIn()");
const big = "x".repeat(10_000);

/** A body, and the id that an answer to it has; undefined for none. */
const bodies: [body: string, id: unknown][] = [
  ['{"jsonrpc":"2.0","id":7,"method":"a.b"}', 7],
  ['{"method":"a.b","id":"x","jsonrpc":"2.0"}', "x"],
  ['{"jsonrpc":"2.0","method":"a.b","params":{"id":"no"},"id":8}', 8],
  ['{"jsonrpc":"2.0","method":"a.b","params":{"id":"no"},"id":8,"auth":"t"}', 8],
  ['{"jsonrpc":"2.0","method":"a.b","params":{"id":"no"},"auth":"t"}', undefined],
  ['{"jsonrpc":"2.0","method":"a.b","params":{"id":"no"}}', undefined],
  ['{"jsonrpc":"2.0","method":"a.b"}', undefined],
  [' {\n "jsonrpc" : "2.0" , "id" : "a\\"b" , "method" : "a.b" }', 'a"b'],
  ['{"auth":"{\\"id\\":1}","id":null,"method":"a.b"}', null],
  [`{"jsonrpc":"2.0","id":1.5e3,"params":{"data":"${big}"}}`, 1500],
  [`{"jsonrpc":"2.0","params":{"data":"${big}","id":"no"},"id":"last"}`, "last"],
  ['[{"id":1},{"jsonrpc":"2.0","method":"a.b"},{"id":"2"}]', [1, "2"]],
  ['[{"jsonrpc":"2.0","method":"a.b"}]', undefined],
  ['[1,{"method":"a.b"},{"id":[]},{"id":2}]', [null, null, null, 2]],
  ["5", null],
  ['{"jsonrpc":"2.0","params":{"id":"no"},"id":9,"more":[{"id":"no"}]}', 9],
  ['{"more":["id",1],"id":9,"params":{"id":"no"}}', 9],
  ['{"id":1,"params":{},"id":2}', 2],
  ['{"\\u0069d":3}', 3],
  [' [{"id":4}]', [4]],
  [`{"method":"${big}","params":{"id":"no"},"id":5,"more":["${big}"]}`, 5],
  [`{"jsonrpc":"2.0","method":"${big}","params":{"id":"no"}}`, undefined],
  [`[{"id":6,"params":{"data":"${big}"}},{"id":7}]`, [6, 7]],
  ['{"id":{}}', null],
  [`{"id":"${"x".repeat(257)}"}`, null],
  ["[", undefined],
  ["hello", undefined],
];
for (const [body, id] of bodies) {
  for (const cut of [1, 7, 100_000]) {
    ids(`finds ${JSON.stringify(id)} in ${body.slice(0, 60)}, cut every ${cut} bytes`, () => {
      const found: unknown[] = [];
      const follower = createFollower(beginsWithId);
      const bytes = Buffer.from(body);
      const header = Buffer.alloc(4);
      header.writeUInt32BE(bytes.length);
      const stream = Buffer.concat([header, bytes, header, bytes]);
      for (let at = 0; at < stream.length; at += cut)
        follow(follower, stream.subarray(at, at + cut), (part) => found.push(idsIn(part)));
      assert.equal(found, [id, id]);
    });
  }
}

for (const test of [relay, ends, absent, healing, owner, terminals, parts, ids]) test.run();
