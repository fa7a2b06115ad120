// time limit: 250 s
/** --serve, --stop, --status and --call of the built file, seen from outside: exit codes, words, /proc, and what is left behind. */

import { spawn, spawnSync } from "node:child_process";
import {
  chmodSync,
  chownSync,
  existsSync,
  linkSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  symlinkSync,
  unlinkSync,
  writeFileSync,
} from "node:fs";
import type { Server } from "node:net";
import { connect, createServer } from "node:net";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { safely } from "../failure.ts";
import type { Outcome, Site } from "./daemon.ts";
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
  namesBelow,
  outcomeOf,
  request,
  sideBySide,
  sleep,
  statOf,
  until,
  withDirectory,
} from "./daemon.ts";

const modeOf = (path: string): string => (lstatSync(path).mode & 0o7777).toString(8);
const isGone = (pid: number) => (): boolean => !isAlive(pid);

/** Everything below a directory, with kind, mode and size: what a failed start must not change. */
function snapshot(directory: string): string[] {
  return namesBelow(directory)
    .sort()
    .map((name) => {
      const { mode, size } = lstatSync(join(directory, name));
      return `${name} ${mode.toString(8)} ${(mode & 0o170000) === 0o040000 ? "" : size}`;
    });
}

const lanes = lanesOf(3);

const cannot = suite("--serve that cannot start");
const refuses = sideBySide(cannot, lanes);

interface Refusal {
  what: string;
  /** Prepares the site; what it returns is called in the end. */
  prepare?(site: Site): unknown;
  /** Instead of `--serve --socket S --token-file T`. */
  args?(site: Site): string[];
  /** As a user who has no rights of root. */
  nobody?: boolean;
  code: number;
  words: RegExp;
}

const listening = (path: string) =>
  new Promise<Server>((done) => {
    const server: Server = createServer().listen(path, () => done(server));
  });
const at =
  (path: string) =>
  (site: Site): string[] => ["--serve", "--socket", join(site.directory, path), "--token-file", site.tokenFile];
const withToken =
  (path: string) =>
  (site: Site): string[] => ["--serve", "--socket", site.socket, "--token-file", join(site.directory, path)];

const refusals: Refusal[] = [
  {
    what: "the directory may not be written to",
    nobody: true,
    prepare: ({ directory }) => chmodSync(directory, 0o555),
    code: 73,
    words: /\/rpc\.sock.*: permission denied \(EACCES\)/,
  },
  {
    what: "the run directory cannot be made",
    nobody: true,
    prepare: ({ directory }) => chmodSync(directory, 0o555),
    args: at("new/rpc.sock"),
    code: 73,
    words: /Cannot make the run directory ".*\/new": permission denied \(EACCES\)/,
  },
  {
    what: "a file stands where a directory must be",
    prepare: ({ directory }) => writeFileSync(join(directory, "file"), ""),
    args: at("file/rpc.sock"),
    code: 73,
    words: /Cannot make the run directory ".*\/file": there is a regular file, a directory is needed/,
  },
  {
    what: "the path is too long",
    args: at("x".repeat(100)),
    code: 73,
    words: /Cannot listen on ".*x": the path has \d+ bytes, a Unix socket path has at most 107/,
  },
  {
    what: "a directory stands at the path",
    prepare: ({ socket }) => mkdirSync(socket),
    code: 73,
    words: /Cannot publish the socket ".*\/rpc\.sock": there is a directory/,
  },
  {
    what: "a file stands at the path",
    prepare: ({ socket }) => writeFileSync(socket, "mine"),
    code: 73,
    words: /Cannot publish the socket ".*\/rpc\.sock": there is a regular file/,
  },
  {
    what: "a symbolic link stands at the path",
    prepare: ({ socket }) => symlinkSync("elsewhere", socket),
    code: 73,
    words: /Cannot publish the socket ".*\/rpc\.sock": there is a symbolic link/,
  },
  {
    what: "the token is empty",
    prepare: ({ directory }) => writeFileSync(join(directory, "t"), "\n", { mode: 0o600 }),
    args: withToken("t"),
    code: 77,
    words: /Cannot read the token file ".*\/t": it is empty/,
  },
  {
    what: "the token is missing",
    args: withToken("t"),
    code: 1,
    words: /Cannot read the token file ".*\/t": no such file or directory \(ENOENT\)/,
  },
  {
    what: "the token may not be read",
    nobody: true,
    prepare: ({ directory }) => writeFileSync(join(directory, "t"), "x", { mode: 0 }),
    args: withToken("t"),
    code: 77,
    words: /Cannot read the token file ".*\/t": permission denied \(EACCES\)/,
  },
  {
    what: "anyone may write the token",
    prepare: ({ directory }) => {
      writeFileSync(join(directory, "t"), "x");
      chmodSync(join(directory, "t"), 0o666);
    },
    args: withToken("t"),
    code: 77,
    words: /Cannot read the token file ".*\/t": its mode is 666/,
  },
  {
    what: "the lifetime is unknown",
    args: (site) => [...at("rpc.sock")(site), "--lifetime", "long"],
    code: 64,
    words: /--lifetime is "long"/,
  },
  {
    what: "an option is of another mode",
    args: (site) => [...at("rpc.sock")(site), "--now"],
    code: 64,
    words: /--now does not go with --serve/,
  },
  {
    what: "there is no systemd to make a scope",
    args: (site) => [...at("rpc.sock")(site), "--lifetime", "scope"],
    code: 1,
    words: /Cannot start in a scope: \w/,
  },
  {
    what: "another's server answers at the path",
    prepare: async ({ socket }) => {
      const server = await listening(socket);
      return () => server.close();
    },
    code: 77,
    words: /Cannot use the socket ".*\/rpc\.sock": a server answers there, but there is no record/,
  },
  {
    what: "another's dead socket stands at the path",
    prepare: async ({ directory, socket }) => {
      const server = await listening(join(directory, "s"));
      linkSync(join(directory, "s"), socket);
      await new Promise((done) => server.close(done));
    },
    code: 73,
    words: /Cannot use the socket ".*\/rpc\.sock": nothing listens there, and it is not provably ours/,
  },
  {
    what: "the record is garbage",
    prepare: ({ socket }) => writeFileSync(`${socket}.record`, "{", { mode: 0o600 }),
    code: 77,
    words: /Cannot read the record ".*\.record": it holds 1 bytes that are not JSON/,
  },
  {
    what: "the record is a link",
    prepare: ({ socket }) => symlinkSync("/etc/passwd", `${socket}.record`),
    code: 77,
    words: /Cannot .*"\/.*\.record": .*(ELOOP|symbolic link)/,
  },
  {
    what: "the log is a link",
    prepare: ({ directory }) => symlinkSync("elsewhere", join(directory, "remote-server.log")),
    code: 77,
    words: /Cannot use ".*\/remote-server\.log": it is a symbolic link/,
  },
  {
    what: "the log is a directory",
    prepare: ({ directory }) => mkdirSync(join(directory, "l")),
    args: (site) => [...at("rpc.sock")(site), "--log", join(site.directory, "l")],
    code: 73,
    words: /Cannot open the log ".*\/l": .*\(EISDIR\)/,
  },
];

for (const { what, prepare, args, nobody, code, words } of refusals) {
  const isOther = nobody && isRoot;
  refuses(`says at once that ${what}, with exit code ${code}, and leaves nothing`, () =>
    withDirectory(
      async (site) => {
        if (isOther) chownSync(site.tokenFile, 65534, 65534);
        const undo = await prepare?.(site);
        try {
          const before = snapshot(site.directory);
          const command = [
            ...(isOther ? [...asNobody, ...forAnyone()] : [process.execPath, builtFile]),
            ...(args?.(site) ?? at("rpc.sock")(site)),
          ];
          const outcome = await site.command(command);
          expectRefusal(outcome, code, words);
          assert.equal(snapshot(site.directory), before);
          assert.equal(site.processes(), []);
        } finally {
          if (typeof undo === "function") undo();
          chmodSync(site.directory, 0o700);
        }
      },
      isOther ? { owner: 65534 } : {},
    ),
  );
}

function expectRefusal({ code, stdout, stderr, ms }: Outcome, expected: number, words: RegExp): void {
  assert.match(stderr, words);
  assert.is(code, expected, stderr);
  assert.match(stderr, /^holdfast: error: .+\nholdfast: hint: .+\n$/);
  assert.is(stdout.length, 0);
  assert.ok(ms < busyMs(3000), `it took ${ms} ms`);
}

const ofItsOwn = ["unshare", isRoot ? "-m" : "-rm"];
const mayMount = spawnSync(ofItsOwn[0]!, [ofItsOwn[1]!, "mount", "-t", "tmpfs", "none", "/mnt"]).status === 0;
for (const pages of [1, 2, 3, 4]) {
  const refusesIf = mayMount ? refuses : (name: string): void => cannot.skip(name);
  refusesIf(`says at once that the disk is full: ${pages} pages free`, () =>
    withDirectory(async (site) => {
      const mount = join(site.directory, "full");
      mkdirSync(mount);
      const script = `mount -t tmpfs -o size=64k,mode=700 none '${mount}' && head -c ${(16 - pages) * 4096} /dev/zero > '${mount}/ballast' &&
      { '${process.execPath}' '${builtFile}' --serve --socket '${mount}/rpc.sock' --token-file '${site.tokenFile}'; echo "$? $(ls -A '${mount}' | tr '\\n' ' ')"; [ ! -S '${mount}/rpc.sock' ] || '${process.execPath}' '${builtFile}' --stop --now --socket '${mount}/rpc.sock'; }`;
      const { stdout, stderr } = await site.command([...ofItsOwn, "sh", "-c", script]);
      const [, code, files] = /(\d+) (.*)\n/.exec(stdout.toString()) ?? [];
      if (code === "0") return assert.ok(pages > 2, "so little suffices for a daemon"); // then there was room
      assert.is(code, "73", stderr);
      assert.match(stderr, /^holdfast: error: Cannot .*\/full\/.*: no space left on device \(ENOSPC\)\n/m);
      assert.match(files!, /^ballast (remote-server\.log )?$/, "nothing but the log is left");
    }),
  );
}

const starts = suite("--serve");
const serves = sideBySide(starts, lanes);

serves("makes socket, record and log 0600 and its directory 0700, whatever the caller's umask", () =>
  withDirectory(async (site) => {
    const socket = join(site.directory, "a/b/rpc.sock");
    const seen: string[] = [];
    const child = spawn(
      "sh",
      [
        "-c",
        `umask 000; exec '${process.execPath}' '${builtFile}' --serve --socket '${socket}' --token-file '${site.tokenFile}'`,
      ],
      { env: site.env },
    );
    const ended = outcomeOf(child);
    let over = false;
    void ended.then(() => (over = true));
    while (!over) {
      for (const name of filesIn(join(site.directory, "a/b"))) {
        try {
          seen.push(modeOf(join(site.directory, "a/b", name)));
        } catch {
          // a temporary name
        }
      }
      await new Promise(setImmediate);
    }
    assert.is((await ended).code, 0);
    assert.equal([...new Set(seen)], ["600"], "at any moment");
    assert.equal(
      ["a", "a/b"].map((name) => modeOf(join(site.directory, name))),
      ["700", "700"],
    );
    const names = filesIn(join(site.directory, "a/b"));
    assert.is(names.length, 4, names.join(" "));
    for (const name of names) assert.is(modeOf(join(site.directory, "a/b", name)), "600", name);
    assert.is(lstatSync(socket).nlink, 2);
  }),
);

serves(
  "starts a process of its own session, with nothing of the caller's: directory, stdin, stdout, stderr, token",
  () =>
    withDirectory(async (site) => {
      const { pid } = await site.serve([], { cwd: site.directory });
      const [, parent, , session, terminal] = statOf(pid)!;
      assert.equal([session, terminal, readlinkSync(`/proc/${pid}/cwd`)], [String(pid), "0", "/"]);
      assert.is.not(Number(parent), process.pid);
      const open = (): string[] =>
        readdirSync(`/proc/${pid}/fd`).map((name) => {
          try {
            return `${name} ${readlinkSync(`/proc/${pid}/fd/${name}`)}`;
          } catch {
            return "";
          }
        });
      await until(
        "one socket is open, the one it listens on",
        () => open().filter((link) => link.includes("socket:")).length === 1,
      );
      const links = open();
      assert.equal(
        links.filter((link) => /^[012] /.test(link)),
        ["0 /dev/null", `1 ${site.directory}/remote-server.log`, `2 ${site.directory}/remote-server.log`],
      );
      for (const file of ["cmdline", "environ"])
        assert.not.ok(readFileSync(`/proc/${pid}/${file}`, "latin1").includes(site.token), file);
    }),
);

serves(
  "holds none of the caller's descriptors, not even one that the runtime overlooks: libuv stops at the first gap after 15",
  () =>
    withDirectory(async (site) => {
      const words = `exec 9>'${site.directory}/low' 200>'${site.directory}/high'; exec '${process.execPath}' '${builtFile}' --serve --socket '${site.socket}' --token-file '${site.tokenFile}'`;
      const outcome = await site.command(["bash", "-c", words]);
      assert.is(outcome.code, 0, outcome.stderr);
      const { pid } = site.record();
      const linkOf = (name: string) => safely(() => readlinkSync(`/proc/${pid}/fd/${name}`)); // or just closed: the connection of --serve
      const links = readdirSync(`/proc/${pid}/fd`).map(linkOf);
      assert.equal(
        links.filter((link) => /\/(low|high)$/.test(link ?? "")),
        [],
      );
      // nor have its processes the log, which was once put in the place of such a one
      const { stdout } = await site.run([
        "--call",
        "process.spawn",
        '{"id":"a","command":"ls","args":["-l","/proc/self/fd"]}',
      ]);
      assert.match(stdout.toString(), / 2 -> .*\/err$/m);
      assert.not.match(stdout.toString(), /\.log/);
    }),
);

serves("returns at once though the caller's pipes stay open, as over ssh, and says where it listens in one line", () =>
  withDirectory(async (site) => {
    const start = Date.now();
    const { code, stdout, stderr } = await site.run(["--serve", "--token-file", site.tokenFile]); // ends with the last holder of its stdout
    assert.ok(Date.now() - start < busyMs(3000), `it took ${Date.now() - start} ms`);
    assert.equal([code, stderr], [0, ""]);
    const { pid, instance } = site.record();
    assert.ok(
      new RegExp(
        `^Remote server listening on ${site.socket} \\(pid ${pid}, instance ${instance}, .+; survives logout: \\w.*\\)\\n$`,
      ).test(stdout.toString()),
      stdout.toString(),
    );
    assert.match(instance, /^[0-9a-f]{32}$/);
  }),
);

serves("reads the token from a pipe, once, before anything is executed", () =>
  withDirectory(async (site) => {
    const { code } = await site.command([
      "bash",
      "-c",
      `'${process.execPath}' '${builtFile}' --serve --socket '${site.socket}' --token-file <(echo t)`,
    ]);
    assert.is(code, 0);
    assert.equal((await (await site.dial()).ask("server.ping", {}, "t")).result, { pong: true });
  }),
);

serves("makes a token of its own when none is given, names its file, and keeps it", () =>
  withDirectory(async (site) => {
    const { code, stderr } = await site.run(["--serve"]);
    assert.is(code, 0);
    assert.match(stderr, /its token is in .*\/rpc\.sock\.token\n$/);
    const token = readFileSync(`${site.socket}.token`, "utf8").trim();
    assert.is(modeOf(`${site.socket}.token`), "600");
    assert.equal((await (await site.dial()).ask("server.ping", {}, token)).result, { pong: true });
    assert.is((await site.run(["--serve"])).code, 0);
    assert.is(readFileSync(`${site.socket}.token`, "utf8").trim(), token);
  }),
);

serves("joins the daemon that runs: the same instance, and each token given is good, a third is not", () =>
  withDirectory(async (site) => {
    const first = await site.serve();
    writeFileSync(join(site.directory, "second.token"), "another token\n", { mode: 0o600 });
    const { code, stdout } = await site.run([
      "--serve",
      "--json",
      "--token-file",
      join(site.directory, "second.token"),
    ]);
    const second = JSON.parse(stdout.toString());
    assert.equal([code, second.how, second.pid, second.instance], [0, "joined", first.pid, first.instance]);
    const wire = await site.dial();
    for (const token of [site.token, "another token"])
      assert.equal((await wire.ask("server.ping", {}, token)).result, { pong: true });
    for (const token of ["a third token", "", "a good token\n", "a good", undefined])
      assert.is((await wire.ask("server.ping", {}, token)).error.code, -32001);
    wire.close();
  }),
);

serves("started ten times at once starts one daemon, and each ends with 0", () =>
  withDirectory(async (site) => {
    const outcomes = await Promise.all(
      Array.from({ length: 10 }, () => site.run(["--serve", "--json", "--token-file", site.tokenFile])),
    );
    assert.equal(
      outcomes.map(({ code }) => code),
      outcomes.map(() => 0),
      outcomes.map(({ stderr }) => stderr).join(""),
    );
    const found = outcomes.map(({ stdout }) => JSON.parse(stdout.toString()));
    assert.is(new Set(found.map(({ instance }) => instance)).size, 1);
    assert.is(found.filter(({ how }) => how === "started").length, 1);
    assert.equal(site.processes(), [found[0].pid]);
    assert.is(filesIn(site.directory).length, 5, filesIn(site.directory).join(" "));
  }),
);

serves("after kill -9 starts a new daemon and clears the old one's names away", () =>
  withDirectory(async (site) => {
    const first = await site.serve();
    const { bound } = site.record().socket;
    process.kill(first.pid, "SIGKILL");
    await until("it is gone", isGone(first.pid));
    assert.ok(existsSync(bound) && existsSync(site.socket));
    const second = await site.serve();
    assert.equal([second.how, second.instance === first.instance, existsSync(bound)], ["started", false, false]);
    assert.equal((await (await site.dial()).ask("server.ping", {}, site.token)).result, { pong: true });
  }),
);

serves("--replace puts a new daemon in the old one's place, with its tokens, and no connect fails in between", () =>
  withDirectory(async (site) => {
    const first = await site.serve();
    writeFileSync(join(site.directory, "second.token"), "another token\n", { mode: 0o600 });
    let over = false;
    const failed: Error[] = [];
    // EAGAIN: the queue is full of a daemon that gets no processor
    const fail = (error: NodeJS.ErrnoException): unknown => error.code !== "EAGAIN" && failed.push(error);
    const connects = (async () => {
      for (; !over; await sleep(1)) await site.dial().then((wire) => wire.close(), fail);
    })();
    const { code, stdout, stderr } = await site.run([
      "--serve",
      "--replace",
      "--json",
      "--token-file",
      join(site.directory, "second.token"),
    ]);
    over = true;
    await connects;
    assert.equal(failed, []);
    assert.is(code, 0, stderr);
    const second = JSON.parse(stdout.toString());
    assert.is.not(second.instance, first.instance);
    await until("the old one has ended", isGone(first.pid));
    const wire = await site.dial();
    for (const token of [site.token, "another token"])
      assert.equal((await wire.ask("server.ping", {}, token)).result, { pong: true });
    assert.is(site.record().instance, second.instance);
    assert.is(filesIn(site.directory).filter((name) => name.startsWith(".")).length, 1, "one bound name");
  }),
);

/** How a caller may be; each time a start, a ping and a stop must work. */
const callers: [what: string, command: (site: Site, words: string) => string[], env?: NodeJS.ProcessEnv][] = [
  ["HOME unset", (_, words) => ["sh", "-c", `unset HOME XDG_STATE_HOME XDG_RUNTIME_DIR; ${words}`]],
  [
    "no environment but a path",
    (site, words) => ["env", "-i", `PATH=${process.env.PATH}`, `HOLDFAST_TEST=${site.directory}`, "sh", "-c", words],
  ],
  [
    "its directory deleted",
    (site, words) => [
      "sh",
      "-c",
      `mkdir '${site.directory}/gone' && cd '${site.directory}/gone' && rmdir ../gone && ${words}`,
    ],
  ],
  ["its directory not to be written to", (_, words) => ["sh", "-c", `cd /proc && ${words}`]],
  ["stdin closed", (_, words) => ["sh", "-c", `exec <&-; ${words}`]],
  ["stdin and stdout closed", (_, words) => ["sh", "-c", `exec <&- >&-; ${words}`]],
  ["all three closed", (_, words) => ["sh", "-c", `exec <&- >&- 2>&-; ${words}`]],
  ["SIGHUP and SIGPIPE ignored", (_, words) => ["sh", "-c", `trap '' HUP PIPE; ${words}`]],
];
for (const [what, command] of callers) {
  serves(`works with ${what}`, () =>
    withDirectory(async (site) => {
      const words = (args: string): string => `'${process.execPath}' '${builtFile}' ${args} --socket '${site.socket}'`;
      const started = await site.command(command(site, `${words("--serve")} --token-file '${site.tokenFile}'`));
      assert.is(started.code, 0, started.stderr);
      const { pid } = site.record();
      assert.equal((await (await site.dial()).ask("server.ping", {}, site.token)).result, { pong: true });
      const stopped = await site.command(command(site, words("--stop")));
      assert.is(stopped.code, 0, stopped.stderr);
      assert.not.ok(isAlive(pid));
    }),
  );
}

serves("keeps record and log of a socket in a shared directory under the default state directory", () =>
  withDirectory(async (site) => {
    const shared = join(site.directory, "shared");
    mkdirSync(shared);
    chmodSync(shared, 0o1777);
    const words = (mode: string): string[] => [process.execPath, builtFile, mode, "--socket", join(shared, "v.sock")];
    const { code, stderr } = await site.command([...words("--serve"), "--token-file", site.tokenFile]);
    assert.is(code, 0, stderr);
    assert.equal(
      filesIn(shared).map((name) => name.startsWith(".") || name),
      [true, "v.sock"],
    );
    for (const name of filesIn(shared))
      assert.equal([modeOf(join(shared, name)), lstatSync(join(shared, name)).isSocket()], ["600", true]);
    const state = join(site.directory, "state/holdfast");
    const below = join(state, filesIn(state)[0]!);
    assert.is(modeOf(below), "700");
    assert.equal(
      filesIn(below).map((name) => name.replace(/-[0-9a-f]{12}/, "")),
      ["v.sock.log", "v.sock.record"],
    );
    assert.is((await site.command(words("--stop"))).code, 0);
    assert.equal(filesIn(shared), []);
  }),
);

serves("writes the log where --log says, relative to the caller", () =>
  withDirectory(async (site) => {
    mkdirSync(join(site.directory, "logs"));
    await site.serve(["--log", "logs/my.log"], { cwd: site.directory });
    assert.match(readFileSync(join(site.directory, "logs/my.log"), "utf8"), /Remote server listening on /);
    assert.not.ok(existsSync(join(site.directory, "remote-server.log")));
  }),
);

serves("logs starts and connections in the known words, and never a token", () =>
  withDirectory(async (site) => {
    const { pid } = await site.serve();
    const wire = await site.dial();
    await wire.ask("server.ping", {}, "a bad and secret token");
    await wire.ask("server.authenticate", { token: "another bad and secret token" });
    await wire.ask("server.ping", { note: "a secret payload" }, site.token);
    wire.close();
    await until("the connection's end is logged", () => /Connection closed: @\n$/.test(site.log()));
    for (const words of [
      `Remote server listening on ${site.socket} `,
      "[Server] New connection from: @",
      "[Server] Connection closed: @",
      "[Server] Unauthorized request on c",
    ]) {
      assert.ok(
        site
          .log()
          .split("\n")
          .some((line) => /^\d{4}-\d\d-\d\dT[\d:.]+Z /.test(line) && line.slice(25).startsWith(words)),
        words,
      );
    }
    await site.run(["--stop"]);
    assert.not.ok(isAlive(pid));
    const record = readFileSync(`${site.socket}.record`, "utf8");
    for (const secret of [site.token, "secret", JSON.parse(record).key])
      assert.not.ok(site.log().includes(secret), secret);
    for (const secret of [site.token, "secret"]) assert.not.ok(record.includes(secret), secret);
  }),
);

serves("--lifetime foreground serves in this process until it is stopped", () =>
  withDirectory(async (site) => {
    const child = spawn(
      process.execPath,
      [builtFile, "--serve", "--lifetime", "foreground", "--socket", site.socket, "--token-file", site.tokenFile],
      { env: site.env },
    );
    const ended = outcomeOf(child);
    await until("it listens", () => existsSync(site.socket));
    assert.is(site.record().pid, child.pid);
    assert.equal((await (await site.dial()).ask("server.ping", {}, site.token)).result, { pong: true });
    expectRefusal(
      await site.run(["--serve", "--lifetime", "foreground", "--token-file", site.tokenFile]),
      75,
      /a daemon \(pid \d+\) answers at/,
    );
    child.kill("SIGTERM");
    const { code, stdout } = await ended;
    assert.is(code, 0);
    assert.match(stdout.toString(), /^Remote server listening on .*\n$/);
    assert.not.ok(existsSync(site.socket));
  }),
);

serves("takes the place of a dead daemon whose socket somebody has open yet, and so does a bridge", () =>
  withDirectory(async (site) => {
    const { pid } = await site.serve();
    process.kill(pid, "SIGKILL");
    await until("it is dead", isGone(pid));
    const script = `require("net").createServer().listen(${JSON.stringify(`${site.socket}.of`)}, () => console.log("up"))`;
    const other = spawn(process.execPath, ["-e", script]);
    await new Promise((done) => other.stdout.once("data", done));
    other.kill("SIGSTOP"); // connects succeed, and nobody takes them
    const leave = (): void => {
      const record = site.record();
      for (const path of [site.socket, record.socket.bound]) {
        rmSync(path, { force: true });
        linkSync(`${site.socket}.of`, path);
      }
      const { dev, ino } = lstatSync(site.socket);
      record.socket = { ...record.socket, dev, ino };
      writeFileSync(`${site.socket}.record`, JSON.stringify(record), { mode: 0o600 });
    };
    try {
      leave();
      const { how, pid: next } = await site.serve();
      assert.is(how, "started");
      process.kill(next, "SIGKILL");
      await until("it is dead", isGone(next));
      leave();
      assert.match((await site.run(["--doctor"])).stdout.toString(), /is gone without a word: killed by SIGKILL/);
      const bridge = site.bridge();
      assert.equal((await bridge.ask("server.ping", {}, site.token)).result, { pong: true });
      bridge.child.stdin.end();
      await bridge.exit;
    } finally {
      other.kill("SIGKILL");
    }
  }),
);

const waits = sideBySide(starts, 1); // it does little, for long
waits("whose socket is deleted publishes it again, and is reached by --bridge, --call and --serve even before", () =>
  withDirectory(async (site) => {
    const { pid, instance } = await site.serve([], { file: builtWith(site.directory, { checkMs: 15_000 }) });
    unlinkSync(site.socket);
    const bridge = site.bridge();
    assert.equal((await bridge.ask("server.ping", {}, site.token)).result, { pong: true });
    bridge.child.stdin.end();
    assert.is((await bridge.exit).code, 0);
    assert.not.ok(existsSync(site.socket), "the bridge went by the other name");
    await until("it is published again", () => existsSync(site.socket), 40_000);
    assert.equal((await (await site.dial()).ask("server.capabilities", {}, site.token)).result.instanceId, instance);
    assert.match(site.log(), /was deleted: published again/);

    unlinkSync(site.socket);
    const joined = await site.serve();
    assert.equal([joined.how, joined.pid, existsSync(site.socket)], ["joined", pid, true]);

    for (const name of filesIn(site.directory))
      if (lstatSync(join(site.directory, name)).isSocket()) rmSync(join(site.directory, name)); // the bound one too
    await until("it is bound and published again", () => existsSync(site.socket), 40_000);
    assert.equal((await (await site.dial()).ask("server.capabilities", {}, site.token)).result.instanceId, instance);
  }),
);

serves("leaves a daemon that does not answer alone, and says so", () =>
  withDirectory(async (site) => {
    const { pid, instance } = await site.serve();
    process.kill(pid, "SIGSTOP");
    const { code, stderr } = await site.run(["--serve", "--token-file", site.tokenFile]);
    assert.is(code, 69, stderr);
    assert.match(stderr, /is not answering/);
    assert.is(statOf(pid)?.[0], "T");
    process.kill(pid, "SIGCONT");
    assert.equal((await (await site.dial()).ask("server.capabilities", {}, site.token)).result.instanceId, instance);
  }),
);

const signals = suite("signals and debuggers");
const signalled = sideBySide(signals, lanes);

/** What the processes of a daemon find in their environment. */
const environmentOf = async (site: Site, name: string): Promise<string> => {
  const peer = await site.dial();
  peer.send(request("process.spawn", { id: "e", command: "printenv", args: [name], cwd: "/" }, site.token));
  let message = await peer.next();
  while (message.stream !== "stdout") message = await peer.next();
  return Buffer.from(message.data, "base64").toString();
};
const isRefused = (port: number): Promise<boolean> =>
  new Promise((done) => {
    const socket = connect(port, "127.0.0.1")
      .once("connect", () => done(false))
      .once("error", () => done(true))
      .once("connect", () => socket.destroy());
  });

signalled("that nobody handles do not end a daemon, nor open node's debugger", () =>
  withDirectory(async (site) => {
    const { pid, instance } = await site.serve();
    const strayed = "USR1 USR2 ALRM VTALRM PROF PIPE IO PWR STKFLT XCPU XFSZ HUP WINCH".split(" ");
    for (const name of strayed) process.kill(pid, `SIG${name}`);
    for (const name of strayed.slice(0, -1))
      await until(`SIG${name} is in the log`, () => new RegExp(`Received SIG${name}`).test(site.log()));
    assert.equal((await (await site.dial()).ask("server.capabilities", {}, site.token)).result.instanceId, instance);
    assert.not.match(site.log(), /Debugger/);
  }),
);

signalled("that end a daemon do so, and it says by whom", () =>
  withDirectory(async (site) => {
    for (const signal of ["SIGTERM", "SIGINT", "SIGQUIT"] as const) {
      const { pid } = await site.serve();
      process.kill(pid, signal);
      await until("it is gone", isGone(pid));
      assert.equal(
        [site.record().ended.reason, site.record().ended.detail.slice(0, signal.length)],
        ["terminated", signal],
      );
    }
  }),
);

signalled("SIGUSR1 opens no debugger in a bridge", () =>
  withDirectory(async (site) => {
    await site.serve();
    const bridge = spawn(process.execPath, [builtFile, "--bridge", "--socket", site.socket], { env: site.env });
    let stderr = "";
    bridge.stderr.on("data", (text: Buffer) => (stderr += text));
    for (let i = 0; i < 20; i++) {
      bridge.stdin.write(frameOf(request("server.ping", {}, site.token)));
      await new Promise((done) => bridge.stdout.once("data", done));
      bridge.kill("SIGUSR1");
    }
    bridge.stdin.end();
    assert.is(await new Promise((done) => bridge.once("close", done)), 0);
    assert.is(stderr, "");
  }),
);

signalled("a debugger that NODE_OPTIONS has for all programs is for those that the daemon starts, not for ours", () =>
  withDirectory(async (site) => {
    const options = "--inspect=127.0.0.1:0 --no-warnings";
    await site.serve([], { env: { NODE_OPTIONS: options } });
    assert.is(await environmentOf(site, "NODE_OPTIONS"), `${options}\n`);
    assert.not.match(site.log(), /Debugger/);
    const bridge = spawn(process.execPath, [builtFile, "--bridge", "--socket", site.socket], {
      env: { ...site.env, NODE_OPTIONS: options },
    });
    let port = 0;
    bridge.stderr.on("data", (text: Buffer) => (port ||= Number(/ws:..127.0.0.1:(\d+)/.exec(String(text))?.[1] ?? 0)));
    bridge.stdin.write(frameOf(request("server.ping", {}, site.token)));
    await new Promise((done) => bridge.stdout.once("data", done));
    await until("node has said so", () => port > 0);
    await until("it is closed", () => isRefused(port));
    bridge.stdin.end();
    await new Promise((done) => bridge.once("close", done));
  }),
);

signalled("a debugger that a signal opened before the first line of ours ran is closed", () =>
  withDirectory(async (site) => {
    await site.serve();
    const early = join(site.directory, "early.cjs");
    writeFileSync(early, 'require("node:inspector").open(0, "127.0.0.1")');
    const bridge = spawn(process.execPath, ["--require", early, builtFile, "--bridge", "--socket", site.socket], {
      env: site.env,
    });
    let port = 0;
    bridge.stderr.on("data", (text: Buffer) => (port ||= Number(/ws:..127.0.0.1:(\d+)/.exec(String(text))?.[1] ?? 0)));
    await until("node has said so", () => port > 0);
    await until("it is closed", () => isRefused(port));
    bridge.stdin.end();
    assert.is(await new Promise((done) => bridge.once("close", done)), 0);
  }),
);

const stops = suite("--stop");
const stopped = sideBySide(stops, lanes);

stopped("ends an idle daemon at once, with a word and a count, and leaves record and log only", () =>
  withDirectory(async (site) => {
    const { pid } = await site.serve();
    const { code, stdout, stderr, ms } = await site.run(["--stop"]);
    assert.equal([code, stdout.toString(), stderr], [0, "stopped 0\n", ""]);
    assert.not.ok(isAlive(pid));
    assert.ok(ms < busyMs(2000));
    assert.equal(filesIn(site.directory), ["given.token", "remote-server.log", "rpc.sock.record"]);
    assert.is(site.record().ended.reason, "stopped");
  }),
);

stopped("says none where there is none: never started, stopped before, or killed", () =>
  withDirectory(async (site) => {
    const none = async (args: string[] = [], expected = "none 0\n"): Promise<void> => {
      const { code, stdout, ms } = await site.run(["--stop", ...args]);
      assert.equal([code, stdout.toString()], [0, expected]);
      assert.ok(ms < busyMs(2000));
    };
    await none();
    assert.equal(filesIn(site.directory), ["given.token"], "and makes nothing");
    await none(["--json"], '{"word":"none","count":0}\n');
    await site.serve();
    assert.is((await site.run(["--stop"])).code, 0);
    await none();
    const { pid } = await site.serve();
    process.kill(pid, "SIGKILL");
    await until("it is gone", isGone(pid));
    await none();
    assert.equal(
      filesIn(site.directory),
      ["given.token", "remote-server.log", "rpc.sock.record"],
      "the dead one's names are cleared away",
    );
  }),
);

stopped("leaves another's server alone", () =>
  withDirectory(async (site) => {
    const server = await listening(site.socket);
    try {
      const { code, stderr } = await site.run(["--stop"]);
      assert.is(code, 77);
      assert.match(stderr, /a server answers there, but there is no record/);
      assert.ok(existsSync(site.socket));
    } finally {
      server.close();
    }
  }),
);

stopped("leaves the successor's socket alone that has taken the name", () =>
  withDirectory(async (site) => {
    const { pid } = await site.serve();
    unlinkSync(site.socket);
    const server = await listening(site.socket);
    try {
      process.kill(pid, "SIGTERM");
      await until("it is gone", isGone(pid));
      assert.ok(existsSync(site.socket));
    } finally {
      server.close();
    }
  }),
);

stopped(
  "is not needed by a process that was to be a daemon, and is handed nothing: it ends, and has made nothing",
  () =>
    withDirectory(async (site) => {
      const before = filesIn(site.directory);
      const child = spawn(
        process.execPath,
        [builtFile, "--serve", "--launched", "--socket", join(site.directory, "rpc.sock")],
        { stdio: ["ignore", "pipe", "pipe", "pipe", "pipe"] },
      );
      const said: string[] = [];
      for (const pipe of [child.stdout!, child.stderr!, child.stdio[4]!])
        (pipe as NodeJS.ReadableStream).on("data", (chunk) => said.push(String(chunk)));
      await new Promise((done) => setTimeout(done, 300)); // it waits
      assert.is(child.exitCode, null);
      (child.stdio[3] as NodeJS.WritableStream).end();
      assert.is(await new Promise((done) => child.once("close", done)), 0);
      assert.equal([said, filesIn(site.directory)], [[], before]);
    }),
);

stopped("ends a daemon that hangs, which its record identifies, by signal", () =>
  withDirectory(async (site) => {
    const { pid } = await site.serve();
    process.kill(pid, "SIGSTOP");
    const { code, stdout, stderr } = await site.run(["--stop"]);
    assert.equal([code, stdout.toString()], [0, "stopped 0\n"], stderr);
    assert.not.ok(isAlive(pid));
    assert.equal(filesIn(site.directory), ["given.token", "remote-server.log", "rpc.sock.record"]);
  }),
);

/**
 * Signals at once, and what the record says of them afterwards. Nothing of systemd stops here: but for where these tests are in a session, which
 * logind alone sends all three.
 */
const inSession = /\/session-/.test(readFileSync("/proc/self/cgroup", "utf8"));
const byLogind = inSession ? "(killed-at-logout|unit-stopped)" : "terminated";
const ends: [signals: NodeJS.Signals[], reason: string][] = [
  [["SIGTERM"], "terminated"],
  [["SIGINT"], "terminated"],
  [["SIGTERM", "SIGHUP"], "terminated"],
  [["SIGTERM", "SIGCONT"], "terminated"],
  [["SIGTERM", "SIGCONT", "SIGHUP"], byLogind],
  [["SIGHUP", "SIGTERM", "SIGCONT"], byLogind],
  [["SIGCONT", "SIGTERM"], "terminated"],
];
for (const [signals, reason] of ends) {
  stopped(`is not needed: ${signals.join(" + ")} ends the daemon within 2 s, as ${reason} in record and log`, () =>
    withDirectory(async (site) => {
      for (let isAtOnce = false, left = 20; !isAtOnce && left > 0; left--) {
        const { pid } = await site.serve();
        const start = performance.now();
        try {
          for (const signal of signals) process.kill(pid, signal);
          isAtOnce = performance.now() - start < 25; // else somebody else had the processor in between: again
        } catch (error) {
          assert.is((error as NodeJS.ErrnoException).code, "ESRCH"); // so late that it had ended
        }
        await until("it has ended", isGone(pid), busyMs(2000));
      }
      const { ended, instance } = site.record();
      assert.match(ended.reason, new RegExp(`^${reason}$`));
      assert.ok(Date.now() - ended.at < 5000 && instance.length === 32);
      for (const signal of signals) assert.ok(ended.detail.includes(signal) && site.log().includes(signal));
      assert.match(site.log(), new RegExp(`Ending: ${reason}`));
      assert.equal(filesIn(site.directory), ["given.token", "remote-server.log", "rpc.sock.record"]);
    }),
  );
}

stopped("is not what SIGHUP, SIGPIPE or SIGCONT mean", () =>
  withDirectory(async (site) => {
    const { pid, instance } = await site.serve();
    for (const signal of ["SIGHUP", "SIGPIPE", "SIGCONT", "SIGHUP"] as const) {
      process.kill(pid, signal);
      await sleep(100);
    }
    assert.equal((await (await site.dial()).ask("server.capabilities", {}, site.token)).result.instanceId, instance);
  }),
);

const asks = suite("--status and --call");
const asked = sideBySide(asks, lanes);

asked("end with 69 and the reason where no daemon runs, and make nothing", () =>
  withDirectory(async (site) => {
    for (const args of [["--status"], ["--status", "--json"], ["--call", "server.ping"]]) {
      const { code, stdout, stderr, ms } = await site.run(args);
      assert.equal([code, stdout.length], [69, 0], stderr);
      assert.match(
        stderr,
        /^holdfast: error: Cannot reach a daemon: no daemon has been started at ".*": there is no record of one\nholdfast: hint: .*--serve --socket '.*'\n$/,
      );
      assert.ok(ms < busyMs(3000));
    }
    assert.equal(filesIn(site.directory), ["given.token"]);
  }),
);

asked("show the daemon, as words and as JSON", () =>
  withDirectory(async (site) => {
    const { pid, instance } = await site.serve();
    const words = await site.run(["--status"]);
    assert.is(words.code, 0);
    for (const text of [`pid ${pid}`, instance, site.socket, "survives logout"])
      assert.ok(words.stdout.toString().includes(text), text);
    const status = JSON.parse((await site.run(["--status", "--json"])).stdout.toString());
    assert.equal(
      [status.pid, status.instanceId, status.socket, status.log, status.phase],
      [pid, instance, site.socket, join(site.directory, "remote-server.log"), "serving"],
    );
    assert.is(status.connections, 1);
    assert.ok(
      Math.abs(
        status.rssBytes - Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, "utf8"))![1]) * 1024,
      ) <
        20 << 20,
      "as the kernel says",
    );
  }),
);

/** A call, its exit code, and what it prints on stdout or stderr. */
const calls: [args: string[], code: number, words: RegExp][] = [
  [["server.ping"], 0, /^\{"pong":true\}\n$/],
  [["server.ping", "{}"], 0, /^\{"pong":true\}\n$/],
  [["files.stat", '{"path":"/"}'], 0, /^\{"exists":true,"isDir":true,/],
  [["files.stat", '{"path":"/"}', "--token-file", "GIVEN"], 0, /"exists":true/],
  [["server.ping", "--token-file", "BAD"], 77, /error: Unauthorized: invalid or missing auth token\nholdfast: hint: /],
  [["server.nothing"], 1, /error: Unknown method: server\.nothing\n/],
  [["nothing"], 1, /error: Invalid method format: nothing\n/],
  [["files.stat"], 1, /error: Cannot use parameter "path"/],
  [["server.ping", "nonsense"], 64, /error: Cannot read PARAMS: /],
];
asked("end with the exit code of the outcome", () =>
  withDirectory(async (site) => {
    await site.serve();
    writeFileSync(join(site.directory, "BAD"), "a bad token\n", { mode: 0o600 });
    for (const [args, code, words] of calls) {
      const given = args.map((word) =>
        word === "GIVEN" ? site.tokenFile : word === "BAD" ? join(site.directory, "BAD") : word,
      );
      const outcome = await site.run(["--call", ...given]);
      assert.is(outcome.code, code, `${args.join(" ")}: ${outcome.stderr}`);
      assert.match(code === 0 ? outcome.stdout.toString() : outcome.stderr, words);
    }
    const { code, stdout } = await site.run(["--call", "files.stat", "-"], { stdin: '{"path":"/nonexistent"}' });
    assert.is(code, 0);
    assert.match(stdout.toString(), /"exists":false/);
  }),
);

for (const test of [cannot, starts, signals, stops, asks]) test.run();
