// time limit: 240 s
/**
 * What another user of the host tries against a daemon, and what a client of the same user tries without a token: a row of a table for each, printed
 * when the file ends. What the kernel shows counts: exit codes, inodes, bytes, /proc; and after each attempt the same daemon answers.
 */

import { lstatSync, readdirSync, readFileSync, readlinkSync } from "node:fs";
import { connect } from "node:net";
import { dirname } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { builtFile, createWire, outcomeOf, request, sideBySide, statOf } from "../daemon.ts";
import type { Host, Result } from "./host.ts";
import { readIfThere, requireHosts, until, withHost } from "./host.ts";

requireHosts(3);

const token = "dev's own good token";
const strangers = suite("a stranger on the host");
const lanes = sideBySide(strangers, 3);
/** All that is done here takes a moment; a machine with much to do, longer. */
const patience = { timeoutMs: 40_000 };

const rows: string[] = ["| attempt | as | promised | happened |\n", "| --- | --- | --- | --- |\n"];
process.once("exit", () => console.log(`\n${rows.join("")}`));
const keepRow = (...cells: string[]): void =>
  void rows.push(`| ${cells.map((cell) => cell.replaceAll("|", "\\|").replaceAll("\n", " ")).join(" | ")} |\n`);

/** A daemon of dev's, seen from outside. */
interface Victim {
  what: string;
  socket: string;
  /** Its run directory, for all but the two names of the socket. */
  directory: string;
  pid: number;
  inside: number;
  instance: string;
  record: string;
  log: string;
}

interface VictimAtWork extends Victim {
  /** What is kept of its one process. */
  kept: string;
}

async function serve(host: Host, what: string, args: string): Promise<Victim> {
  const started = await host.ssh("dev", `./server --serve --json --token-file token ${args}`, patience);
  assert.is(started.code, 0, started.stderr);
  const { socket, pid: inside, instance, log } = JSON.parse(started.stdout);
  const directory = log.replace(/\/[^/]+$/, "");
  const record = readdirSync(host.file(directory))
    .map((name) => `${directory}/${name}`)
    .find((path) => path.endsWith(".record") && readIfThere(host.file(path)).includes(instance))!;
  const { pid } = host.processes("--launched").find((found) => found.inside === inside)!;
  return { what, socket, directory, pid, inside, instance, record, log };
}

/** Starts a process of dev's that says a secret. */
async function startJob(host: Host, victim: Victim): Promise<VictimAtWork> {
  const { socket, record } = victim;
  const job = { id: "job", command: "sh", args: ["-c", "echo secret; exec sleep 1000"] };
  await ask(host, socket, "process.spawn", token, job);
  const held = record.replace(/record$/, "held");
  const isKept = (name: string): boolean => readIfThere(host.file(`${held}/${name}/0`)).includes("secret");
  await until(() => readdirSync(host.file(held)).some(isKept), "its word to be kept");
  const kept = `${held}/${readdirSync(host.file(held)).find(isKept)}`;
  return { ...victim, kept };
}

/** One request, from outside the host. */
async function ask(host: Host, socket: string, method: string, auth = token, params = {}): Promise<any> {
  const connection = connect(host.file(socket));
  try {
    await new Promise((done, fail) => connection.once("connect", done).once("error", fail));
    return await createWire(connection, connection, auth).request(method, params);
  } finally {
    connection.destroy();
  }
}

/** What must be the same after an attempt, whatever it was. */
async function stateOf(
  host: Host,
  { socket, pid, record, directory, kept }: Victim & Partial<VictimAtWork>,
): Promise<unknown> {
  const { mode, uid, dev, ino } = lstatSync(host.file(socket));
  const { instanceId, methods } = await ask(host, socket, "server.capabilities");
  const state = statOf(pid)!;
  const files = kept ? readdirSync(host.file(kept)).map((name) => `${kept}/${name}`) : [];
  const names = [record, directory, ...(kept ? [dirname(kept), kept] : []), ...files]
    .map((path) => lstatSync(host.file(path)))
    .map((stats) => [stats.uid, stats.mode & 0o7777, stats.ino]);
  assert.match(state[0]!, /[SRD]/, "it sleeps, runs or writes its log, and is not stopped or traced");
  return {
    mode,
    uid,
    dev,
    ino,
    instanceId,
    methods,
    startTime: state[19],
    tracer: /TracerPid:\t(\d+)/.exec(readFileSync(`/proc/${pid}/status`, "utf8"))![1],
    names,
    record: readFileSync(host.file(record), "utf8"),
    about: kept && readFileSync(host.file(`${kept}/about`), "utf8"),
  };
}

/** Mallory's one session: each command in a shell of its own, with nothing to read. */
async function openShell(
  host: Host,
  user: string,
): Promise<(command: string) => Promise<{ code: number; text: string }>> {
  const ssh = host.spawnSsh(user, "exec bash 2>&1");
  let text = "";
  let count = 0;
  ssh.stdout.setEncoding("utf8").on("data", (chunk: string) => (text += chunk));
  return async (command) => {
    const mark = `end-of-${++count}`;
    text = "";
    ssh.stdin.write(
      `timeout -k 1 30 bash -c '${command.replaceAll("'", "'\\''")}' </dev/null 2>&1; echo "${mark} $?"\n`,
    );
    await until(() => new RegExp(`${mark} \\d+\\n$`).test(text), command, 40_000);
    const [, said, code] = new RegExp(`^([\\s\\S]*?)${mark} (\\d+)\\n$`).exec(text)!;
    return { code: Number(code), text: said! };
  };
}

/** Connects, and says what came of it: "EACCES". */
const dialer = `process.argv.slice(1).forEach((path) => require("node:net").connect(path).on("error", ({ code }) => console.log(code)).on("connect", () => { console.log("CONNECTED"); process.exit(); }))`;
/** Says what was sent to it. */
const squatter = `const path = process.argv[1]; process.umask(0);
require("node:net").createServer((socket) => socket.on("error", () => {}).on("data", (data) => require("node:fs").appendFileSync(process.argv[2], data))).listen(path);
setTimeout(process.exit, 900_000);`; // longer than this file may take; it ends with the host
const ptraceNumber: Record<string, number> = { x64: 101, arm64: 117 };

/** The attempt in words, the command, what must be said, with which exit code (any but 0 when it is left out). */
type Attempt = [what: string, command: string, says: RegExp, code?: number | undefined];

const denied = /Permission denied|Operation not permitted|cannot access/;

function attemptsOn(victim: VictimAtWork, isShared: boolean): Attempt[] {
  const { socket, directory } = victim;
  const node = "node ~/server";
  const at = `--socket ${socket}`;
  const refused = isShared ? /EACCES|may not be used: permission denied \(EACCES\)/ : /permission denied|EACCES/i;
  return [
    ["connect to the socket", `node -e '${dialer}' ${socket}`, /^EACCES\n$/, 0],
    [
      "connect to each socket in the directory, hidden ones too",
      isShared
        ? `shopt -s dotglob; for s in /tmp/* ${socket}; do [ -S $s ] && node -e '${dialer}' $s; done | sort -u; exit 0`
        : `ls -a ${directory}/`,
      isShared ? /^EACCES\n$/ : denied,
      isShared ? 0 : undefined,
    ],
    [
      "guess 200 tokens",
      `node -e '${dialer.replace("process.argv.slice(1)", "Array(200).fill(process.argv[1])")}' ${socket} | sort | uniq -c`,
      /^ *200 EACCES\n$/,
      0,
    ],
    ["`--bridge`", `${node} --bridge ${at}`, refused, 77],
    ["`--status`", `${node} --status ${at}`, refused, 77],
    [
      "`--call server.ping`, with a guessed token",
      `umask 077; echo t > guess; ${node} --call server.ping --token-file guess ${at}`,
      refused,
      77,
    ],
    ["`--stop`", `${node} --stop ${at}`, refused, 77],
    ["`--stop --now`", `${node} --stop --now ${at}`, refused, 77],
    ["`--serve` on the same path", `${node} --serve ${at}`, refused],
    ["`--serve --replace`", `${node} --serve --replace ${at}`, refused],
    ...attemptsOnFiles(victim, isShared),
  ];
}

/** … on its files and its process. */
function attemptsOnFiles(victim: VictimAtWork, isShared: boolean): Attempt[] {
  const { socket, directory, record, log, kept } = victim;
  const name = socket.replace(/.*\//, "");
  return [
    [
      "read record, log, token and directory",
      `cat ${record}; cat ${log}; cat ${directory}/*; ls ${directory}; cp -r ${directory} stolen; find ${directory}/`,
      denied,
    ],
    ["write to record and log", `echo x >> ${record}; echo x > ${log}; touch ${directory}/x; exit 1`, denied],
    [
      "remove, rename and replace the socket",
      `rm -f ${socket}; mv ${socket} ~/mine; mv -T ${socket} ${socket}.x; touch ~/own; mv -f ~/own ${socket}; ln -sf /dev/null ${socket}; exit 1`,
      /Operation not permitted|Permission denied/,
    ],
    [
      "remove and rename record, claim, lock and directory",
      `rm -rf ${record} ${directory}; mv ${directory} ${directory}.x; exit 1`,
      denied,
    ],
    [
      "make it readable: chmod, chown, setfacl",
      `chmod 777 ${socket} ${directory} ${record}; chown mallory ${socket}; exit 1`,
      denied,
    ],
    [
      "hard links to socket and record",
      `cd ${isShared ? "/tmp" : "~"}; ln ${record} r.$$ && cat r.$$; ln ${socket} s.$$ && node -e '${dialer}' $PWD/s.$$; exit 1`,
      /Operation not permitted|Permission denied|EACCES/,
    ],
    [
      "plant claim, lock, record and temporary files",
      `for n in claim lock record record.lock token log; do touch ${directory}/${name}.$n; mkdir ${directory}/${name}.$n; mkfifo ${directory}/${name}.$n; done; exit 1`,
      denied,
    ],
    [
      "read, plant, link and remove what is kept of processes",
      `for d in ${dirname(kept)} ${kept}; do ls $d; cat $d/about $d/0 $d/out $d/owner; touch $d/x; mkfifo $d/f; ln -s /etc/passwd $d/mark; ln -f ~/server $d/about; mkdir -m 777 $d/abcdefghijkl; rm -rf $d; mv $d ~/mine; done; exit 1`,
      denied,
    ],
    ...attemptsOnProcess(victim),
  ];
}

function attemptsOnProcess({ socket, inside }: Victim): Attempt[] {
  return [
    [
      "signals: TERM, KILL, STOP, CONT, HUP, USR1",
      `for s in TERM KILL STOP CONT HUP USR1; do kill -$s ${inside}; kill -$s -${inside}; done; exit 1`,
      /Operation not permitted/,
    ],
    [
      "/proc/<pid>: environ, mem, maps, fd, cwd, root, io",
      `cd /proc/${inside}; head -c 1 environ; head -c 1 mem; cat maps; ls fd; readlink cwd root exe; cat io; exit 1`,
      denied,
    ],
    [
      "ptrace",
      `perl -e 'syscall(${ptraceNumber[process.arch]}, 16, ${inside}, 0, 0) == 0 and print "ATTACHED" or print $!'`,
      /^Operation not permitted$/,
      0,
    ],
    ["write to its memory", `echo x > /proc/${inside}/mem; echo 1000 > /proc/${inside}/oom_score_adj; exit 1`, denied],
    ["limits and priority", `prlimit --pid ${inside} --nofile=8:8; renice 19 ${inside}; exit 1`, denied],
    [
      "end it through logind and the user manager",
      `loginctl --no-ask-password terminate-user dev; systemctl --no-ask-password stop user-$(id -u dev).slice; loginctl --no-ask-password kill-user dev; exit 1`,
      /[Aa]uthentication|denied|not permitted/,
    ],
    [
      "what /proc shows to all",
      `tr "\\0" " " < /proc/${inside}/cmdline`,
      new RegExp(`--serve --launched --socket ${socket} $`),
      0,
    ],
  ];
}

lanes(
  "may not connect to, read, stop, replace, signal or trace a daemon of another user, in its own directory or in /tmp",
  () =>
    withHost({ killUserProcesses: false, users: ["dev", "mallory"] }, async (host) => {
      for (const user of ["dev", "mallory"]) await host.copy(user, builtFile, "server");
      assert.is((await host.ssh("dev", `umask 077; printf %s "${token}" > token; chmod 755 ~`)).code, 0); // only the run directory's own mode protects it
      const served = [await serve(host, "its default place", ""), await serve(host, "/tmp", "--socket /tmp/v.sock")];
      const victims = await Promise.all(served.map((victim) => startJob(host, victim)));
      for (const path of [".local", ".local/state", ".local/state/holdfast"])
        await host.inside(["chmod", "755", `/home/dev/${path}`]);
      const shell = await openShell(host, "mallory");
      for (const victim of victims) {
        const logged = readFileSync(host.file(victim.log), "utf8").length;
        const isShared = victim.socket.startsWith("/tmp/");
        for (const [what, command, says, code] of attemptsOn(victim, isShared)) {
          const before = await stateOf(host, victim);
          const outcome = await shell(command);
          const label = `${what}, ${victim.what}: exit code ${outcome.code}: ${outcome.text.slice(0, 1500)}`;
          assert.match(outcome.text, says, label);
          assert.not.match(outcome.text, /ATTACHED|CONNECTED|Internal error/, label);
          assert.not.match(
            outcome.text,
            new RegExp(`^secret$|${token}|${JSON.parse((before as any).record).key}`, "m"),
            label,
          );
          if (code === undefined) assert.is.not(outcome.code, 0, label);
          else assert.is(outcome.code, code, label);
          assert.equal(await stateOf(host, victim), before, label);
          keepRow(
            `${what} (${victim.what})`,
            "mallory",
            code === 0 && what.startsWith("what") ? "no secret" : "refused; the same daemon answers",
            `“${outcome.text.trim().split("\n")[0]!.replaceAll(/\s+/g, " ").slice(0, 90)}”`,
          );
        }
        const log = readFileSync(host.file(victim.log), "utf8").slice(logged);
        assert.not.match(log, /Received|Unauthorized|Ending|Told to stop/, "the daemon has heard of none of it");
      }
    }),
);

/** Everything of a path that an attempt could change. */
function fingerprint(host: Host, path: string): string {
  const stats = lstatSync(host.file(path));
  const content = stats.isFile()
    ? readFileSync(host.file(path), "utf8")
    : stats.isSymbolicLink()
      ? readlinkSync(host.file(path))
      : "";
  return `${stats.ino} ${stats.mode.toString(8)} ${stats.uid} ${stats.size} ${content}`;
}

/** What mallory has put under the socket's name, how, what --serve says of it, and its exit code. */
const plants: [what: string, command: (path: string) => string, says: RegExp, code: number][] = [
  ["a file", (path) => `echo mine > ${path}`, /there is a regular file, the path must be free/, 73],
  ["a directory", (path) => `mkdir -m 777 ${path}`, /there is a directory/, 73],
  ["a FIFO", (path) => `mkfifo -m 666 ${path}`, /there is a FIFO/, 73],
  ["a symbolic link to dev's own file", (path) => `ln -s /home/dev/precious ${path}`, /there is a symbolic link/, 73],
  ["a symbolic link to mallory's server", (path) => `ln -s /tmp/squat ${path}`, /there is a symbolic link/, 73],
  [
    "a dead socket",
    (path) =>
      `node -e 'require("node:net").createServer().listen(process.argv[1], () => process.kill(process.pid, "SIGKILL"))' ${path}; chmod 777 ${path}; true`,
    /nothing listens there, and it is not provably ours/,
    73,
  ],
  ["a server that listens, for all", (path) => `ln -f /tmp/squat ${path}`, /another user may have planted it/, 77],
];

/** mallory, who was there first: her server listens at /tmp/squat, and keeps what it hears. */
interface Squat {
  host: Host;
  /** Runs a command of hers, which must succeed. */
  done(command: string): Promise<void>;
  heard(): string;
  asDev(command: string): Promise<Result>;
  /** What must stay as it is. */
  precious: string;
}

async function squat(host: Host): Promise<Squat> {
  for (const user of ["dev", "mallory"]) await host.copy(user, builtFile, "server");
  assert.is(
    (await host.ssh("dev", `umask 077; printf %s "${token}" > token; echo precious > precious; chmod 711 ~`)).code,
    0,
  );
  const shell = await openShell(host, "mallory");
  const done = async (command: string): Promise<void> => assert.is((await shell(command)).code, 0, command);
  const heard = (): string => readIfThere(host.file("/home/mallory/heard"));
  const asDev = (command: string): Promise<Result> => host.ssh("dev", command, patience);
  await done(
    `setsid node -e '${squatter}' /tmp/squat ~/heard </dev/null >/dev/null 2>&1 & for i in $(seq 100); do [ -S /tmp/squat ] && exit 0; sleep 0.1; done; exit 1`,
  );
  const precious = fingerprint(host, "/home/dev/precious");
  return { host, done, heard, asDev, precious };
}

/** One name of the socket after the other. */
async function tryPlants({ host, done, heard, asDev, precious }: Squat): Promise<void> {
  for (const [i, [what, plant, says, code]] of plants.entries()) {
    const path = `/tmp/planted-${i}.sock`;
    await done(plant(path));
    const before = fingerprint(host, path);
    const served = await asDev(`./server --serve --token-file token --socket ${path}`);
    assert.match(served.stderr, says, what);
    assert.is(served.code, code, what);
    const others = await Promise.all(
      [`--bridge`, `--call server.ping --token-file token`, `--stop`].map((mode) =>
        outcomeOf(
          host.spawnSsh("dev", `./server ${mode} --socket ${path}`),
          `${JSON.stringify(request("server.ping", {}, token))}\n`,
          40_000,
        ),
      ),
    );
    for (const other of others) assert.is.not(other.code, 0, `${what}: ${other.stdout}`);
    assert.equal(
      [fingerprint(host, path), fingerprint(host, "/home/dev/precious"), heard()],
      [before, precious, ""],
      what,
    );
    assert.is(host.processes("--launched").length, 0);
    keepRow(
      `${what} under the socket's name, before the first start; then \`--serve\`, \`--bridge\`, \`--call\` and \`--stop\``,
      "mallory, then dev",
      "refused in words; not a byte is sent; nothing is followed or removed",
      `“${served.stderr.split("\n")[0]!.slice("holdfast: error: ".length, 130)}”`,
    );
  }
}

async function tryNames({ host, done, precious }: Squat): Promise<Victim> {
  // every name that the daemon's files would have, if they were in /tmp
  const names = ["record", "record.lock", "claim", "token", "log"]
    .map((name) => `/tmp/q.sock.${name}`)
    .concat("/tmp/remote-server.log", "/tmp/holdfast.cjs");
  await done(
    `for n in ${names.join(" ")}; do ln -s /home/dev/precious $n; done; mkfifo -m 666 /tmp/q.sock.record.x; mkdir -m 777 /tmp/q.sock.claim.x`,
  );
  const before = names.map((name) => fingerprint(host, name));
  const planted = await serve(host, "/tmp", "--socket /tmp/q.sock");
  assert.match(planted.directory, /^\/home\/dev\/\.local\/state\/holdfast\//);
  assert.equal(
    names.map((name) => fingerprint(host, name)),
    before,
  );
  assert.is(fingerprint(host, "/home/dev/precious"), precious);
  keepRow(
    "symbolic links, a FIFO and a directory under the names of record, lock, claim, token, log",
    "mallory, then dev",
    "none is used: they are in dev's own directory",
    "so",
  );
  const rest = readdirSync(host.file("/tmp")).filter(
    (name) =>
      lstatSync(host.file(`/tmp/${name}`)).isSocket() && lstatSync(host.file(`/tmp/${name}`)).uid === host.uid("dev"),
  );
  for (const name of rest) assert.is(lstatSync(host.file(`/tmp/${name}`)).mode & 0o777, 0o600, name);
  assert.is(rest.length, 2, "names of dev's socket");
  return planted;
}

async function tryHerDirectory({ host, done, heard, precious }: Squat, planted: Victim): Promise<Victim> {
  // a directory of mallory's, open to all, with a record of her making in it: she may take the socket away, but not its place
  const forged = {
    ...JSON.parse(readFileSync(host.file(planted.record), "utf8")),
    key: "k",
    tokenHashes: [],
    log: "/home/dev/precious",
    pid: planted.inside,
  };
  await done(
    `mkdir -m 777 /tmp/hers; cat > /tmp/hers/s.record <<< '${JSON.stringify(forged)}'; cp /tmp/hers/s.record /tmp/hers/s.claim; echo hers > /tmp/hers/s.token; chmod 666 /tmp/hers/*; ln -s /home/dev/precious /tmp/hers/s.log`,
  );
  const hers = await serve(host, "mallory's directory", "--socket /tmp/hers/s");
  assert.match(hers.directory, /^\/home\/dev\//);
  await ask(host, hers.socket, "server.ping", "hers").then(
    () => assert.unreachable("her token is good"),
    ({ code }) => assert.is(code, -32001),
  );
  await ask(host, hers.socket, "server.ping", "k").then(
    () => assert.unreachable("her key is good"),
    ({ code }) => assert.is(code, -32001),
  );
  await done("rm -f /tmp/hers/s && ln /tmp/squat /tmp/hers/s");
  const bridged = await outcomeOf(
    host.spawnSsh("dev", "./server --bridge --socket /tmp/hers/s"),
    `${JSON.stringify(request("server.ping", {}, token))}\n`,
    40_000,
  );
  assert.is(bridged.code, 77, bridged.stderr);
  assert.is(JSON.parse(bridged.stdout.toString()).error.data.reason, "permission");
  assert.equal([heard(), fingerprint(host, "/home/dev/precious")], ["", precious]);
  assert.ok(host.isAlive(hers.inside));
  keepRow(
    "a directory of her own, open to all, with record, claim, token and log in it; then her server in the socket's place",
    "mallory, then dev",
    "nothing in it is used; the bridge tells that it is another user's, and sends nothing",
    `“${JSON.parse(bridged.stdout.toString()).error.message.slice(0, 100)}”`,
  );
  return hers;
}

lanes("who were there first, in /tmp, get nothing: no token, no file of the user's", () =>
  withHost({ killUserProcesses: false, users: ["dev", "mallory"] }, async (host) => {
    const stage = await squat(host);
    await tryPlants(stage);
    const planted = await tryNames(stage);
    const hers = await tryHerDirectory(stage, planted);
    // she can speak to those who come: that nothing was heard is no accident
    await stage.done(
      `node -e 'require("node:net").connect("/tmp/squat").end("hello")'; for i in $(seq 100); do grep -q hello ~/heard && exit 0; sleep 0.1; done; exit 1`,
    );
    for (const { socket } of [planted, hers]) await stage.asDev(`./server --stop --now --socket ${socket}`);
  }),
);

/** What each method would be asked, so that it would show. */
const params: Record<string, unknown> = {
  "process.spawn": { id: "a", command: "/bin/touch", args: ["/home/dev/pwned"] },
  "files.write": { path: "/home/dev/pwned", content: "x" },
  "server.shutdown": { graceMs: 0 },
  "server.admit": { key: "guess", tokenHash: "0".repeat(64) },
  "files.read": { path: "/home/dev/token" },
};

/** What is no token of the daemon's, though it may look like one. */
function wrongAuths({ tokenHashes, instance, key }: any): [string, unknown][] {
  return [
    ["none", undefined],
    ["null", null],
    ["empty", ""],
    ["wrong", "wrong"],
    ["a beginning of it", token.slice(0, -1)],
    ["more than it", `${token} `],
    ["other case", token.toUpperCase()],
    ["its hash", tokenHashes[0]],
    ["the instance", instance],
    ["a beginning of the key", key.slice(0, 63)],
    ["a number", 1],
    ["true", true],
    ["an array of it", [token]],
    ["an object", { token }],
  ];
}

/** What a bridge of dev's answers to some messages. */
async function bridgeOf(host: Host, messages: unknown[]): Promise<any[]> {
  const { code, stdout, stderr } = await outcomeOf(
    host.spawnSsh("dev", "./server --bridge --no-start"),
    messages.map((message) => `${JSON.stringify(message)}\n`).join(""),
    40_000,
  );
  assert.is(code, 0, stderr);
  return stdout
    .toString()
    .trim()
    .split("\n")
    .filter((line) => line !== "")
    .map((line) => JSON.parse(line));
}

/** Each method but the one that needs no token; with an id, or as notifications. */
function requestsOf(methods: string[], auth: unknown, id?: string): object[] {
  return methods
    .filter((method) => method !== "server.authenticate")
    .map((method) => ({
      jsonrpc: "2.0",
      method,
      params: params[method] ?? {},
      ...(id === undefined ? {} : { id: `${id} ${method}` }),
      ...(auth === undefined ? {} : { auth }),
    }));
}

async function tryAuths(host: Host, methods: string[], auths: [string, unknown][]): Promise<void> {
  for (const [what, auth] of auths) {
    const batch = requestsOf(methods, auth, "batch");
    const answers = await bridgeOf(host, [
      ...requestsOf(methods, auth, "single"),
      ...requestsOf(methods, auth),
      requestsOf(methods, auth),
      batch,
    ]);
    assert.is(answers.length, batch.length + 1, "an answer each, one for the batch, none for notifications");
    for (const answer of [...answers.slice(0, -1), ...answers.at(-1)]) {
      const { code, message } = answer.error;
      assert.equal(
        { code, message },
        { code: -32001, message: "Unauthorized: invalid or missing auth token" },
        `${what}: ${JSON.stringify(answer)}`,
      );
      assert.not.ok("result" in answer);
    }
    keepRow(
      `all ${batch.length} methods, as requests, notifications, in batches; \`auth\` is ${what}`,
      "dev, without the token",
      "-32001 for each, nothing carried out",
      `${answers.length - 1 + answers.at(-1).length} refusals`,
    );
  }
}

async function tryTokens(host: Host, methods: string[], auths: [string, unknown][]): Promise<void> {
  const tries = [
    ...auths.map(([, value]) => value).filter((value) => typeof value === "string" && value !== ""),
    "\0",
    "x".repeat(100_000),
  ];
  const refusals = await bridgeOf(
    host,
    tries
      .map((value) => request("server.authenticate", { token: value }))
      .concat(requestsOf(methods, undefined, "after") as any),
  );
  assert.equal(
    refusals.map(({ error }) => error?.code),
    Array(tries.length + methods.length - 1).fill(-32001),
  );
  const odd = await bridgeOf(
    host,
    [undefined, "", 1, [token], { token }].map((value) => request("server.authenticate", { token: value })),
  );
  assert.ok(
    odd.every(({ error }) => error?.code === -32602),
    JSON.stringify(odd),
  );
  keepRow(
    "`server.authenticate` with wrong tokens, and with what is no text; then all methods",
    "dev, without the token",
    "-32001; -32602; and still refused",
    `${refusals.length + odd.length} refusals`,
  );
}

lanes(
  "of the same user, who have no token and have not read the record, are refused everything, and nothing is carried out",
  () =>
    withHost({ killUserProcesses: false, users: ["dev"] }, async (host) => {
      await host.copy("dev", builtFile, "server");
      assert.is((await host.ssh("dev", `umask 077; printf %s "${token}" > token`)).code, 0);
      const victim = await serve(host, "its default place", "");
      const before = await stateOf(host, victim);
      const record = JSON.parse(readFileSync(host.file(victim.record), "utf8"));
      const { methods } = (await ask(host, victim.socket, "server.capabilities")) as { methods: string[] };
      const auths = wrongAuths(record);
      assert.ok(methods.length >= 17 && methods.includes("server.admit"), methods.join());
      await tryAuths(host, methods, auths);
      await tryTokens(host, methods, auths);

      assert.equal(await stateOf(host, victim), before, "the daemon, its record and its tokens");
      assert.equal(
        readdirSync(host.file("/home/dev")).filter((name) => name.includes("pwned")),
        [],
      );
      const log = readFileSync(host.file(victim.log), "utf8");
      assert.not.match(log, /Started|Told to stop|Ending/);
      assert.not.ok(
        [token, record.key, "wrong", "guess"].some((secret) => log.includes(secret)),
        "the log has what was tried",
      );
      assert.is((await host.ssh("dev", "./server --stop", patience)).stdout, "stopped 0\n");
    }),
);

strangers.run();
