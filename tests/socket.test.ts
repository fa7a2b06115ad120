/** Where the files of a socket are, its names, its tokens, and who publishes it. */

import { execFileSync, spawn, spawnSync } from "node:child_process";
import {
  chmodSync,
  closeSync,
  existsSync,
  lstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  statSync,
  symlinkSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { createServer } from "node:net";
import { hostname, userInfo } from "node:os";
import { basename, join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { Failure } from "../failure.ts";
import {
  defaultDirectory,
  homeDirectory,
  isSame,
  listenBeside,
  lookAt,
  makeRunDirectory,
  maxPathBytes,
  ownToken,
  placesOf,
  publishSocket,
  readToken,
  retireName,
} from "../socket.ts";
import { busyMs, failureOf, filesIn, modeOf, sleep, withDirectory } from "./daemon.ts";

const places = suite("placesOf()");

places("knows the limit of the kernel: 107 bytes and a zero on Linux", () =>
  assert.is(maxPathBytes, process.platform === "darwin" ? 103 : 107),
);

for (const [name, letter] of [
  ["of one byte", "a"],
  ["of two bytes", "é"],
  ["of four bytes", "😀"],
] as const) {
  places(`takes a path of ${maxPathBytes} bytes and not one of more, letters ${name}`, async () => {
    for (let length = maxPathBytes - 2; length <= maxPathBytes + 1; length++) {
      const path = `/nonexistent/${letter.repeat(20)}`.padEnd(
        length - Buffer.byteLength(letter.repeat(20)) + letter.repeat(20).length,
        "a",
      );
      assert.is(Buffer.byteLength(path), length);
      if (length <= maxPathBytes) {
        assert.is(placesOf({ socket: path }).socket, path);
        continue;
      }
      const { message, exit, hint } = await failureOf(() => placesOf({ socket: path }));
      assert.is(
        message,
        `Cannot listen on "${path}": the path has ${length} bytes, a Unix socket path has at most ${maxPathBytes}`,
      );
      assert.equal([exit, hint], [73, "choose a shorter one with --socket"]);
    }
  });
}

places("keeps all beside the socket in a directory of our own, named after it", () =>
  withDirectory(async ({ directory }) => {
    const at = (name: string) => join(directory, name);
    assert.equal(placesOf({ socket: at("rpc.sock") }), {
      socket: at("rpc.sock"),
      directory,
      record: at("rpc.sock.record"),
      claim: at("rpc.sock.claim"),
      token: at("rpc.sock.token"),
      log: at("remote-server.log"),
      held: at("rpc.sock.held"),
      agent: at("rpc.sock.agent"),
    });
    assert.is(placesOf({ socket: at("v.sock") }).log, at("v.sock.log"));
    assert.is(placesOf({ socket: at("v.sock"), log: at("a.log") }).log, at("a.log"));
    assert.is(placesOf({ socket: at("new/v.sock") }).directory, at("new"));
  }),
);

for (const mode of [0o1777, 0o777, 0o770, 0o2775, 0o702]) {
  places(
    `keeps all but the socket out of a directory of mode ${mode.toString(8)}, in a place of its own for each socket`,
    () =>
      withDirectory(async ({ directory }) => {
        chmodSync(directory, mode);
        const socket = join(directory, "v.sock");
        const found = placesOf({ socket });
        assert.is(found.socket, socket);
        assert.is(found.directory, defaultDirectory());
        for (const path of [found.record, found.claim, found.token, found.log]) {
          assert.match(
            path,
            new RegExp(
              `^${defaultDirectory().replaceAll(".", "\\.")}/v\\.sock-[0-9a-f]{12}\\.(record|claim|token|log)$`,
            ),
          );
        }
        mkdirSync(join(directory, "other"), { mode: 0o777 });
        chmodSync(join(directory, "other"), 0o777);
        assert.is.not(placesOf({ socket: join(directory, "other/v.sock") }).record, found.record);
      }),
  );
}

places("take the state directory by host, from the environment or the home directory", () => {
  assert.is(defaultDirectory({ XDG_STATE_HOME: "/x" }), `/x/holdfast/${hostname()}`);
  assert.is(defaultDirectory({ XDG_STATE_HOME: "x", HOME: "/h" }), `/h/.local/state/holdfast/${hostname()}`);
  assert.is(defaultDirectory({ XDG_STATE_HOME: "", HOME: "/h" }), `/h/.local/state/holdfast/${hostname()}`);
  assert.is(homeDirectory({}), userInfo().homedir);
  assert.is(homeDirectory({ HOME: "" }), userInfo().homedir);
});

places("are made 0700, with the directories above, whatever the umask", () =>
  withDirectory(async ({ directory }) => {
    const umask = process.umask(0);
    try {
      makeRunDirectory(join(directory, "a/b"));
      assert.equal([modeOf(join(directory, "a")), modeOf(join(directory, "a/b"))], ["700", "700"]);
    } finally {
      process.umask(umask);
    }
    writeFileSync(join(directory, "file"), "");
    for (const [path, why] of [
      ["file", /: there is a regular file, a directory is needed$/],
      ["file/below", /\(ENOTDIR\)$/],
      ["file/further/below", /\(ENOTDIR\)$/],
      ["n".repeat(300), /\(ENAMETOOLONG\)$/],
    ] as const) {
      const { exit, message } = await failureOf(() => makeRunDirectory(join(directory, path)));
      assert.is(exit, 73);
      assert.match(message, why);
    }
  }),
);
(existsSync("/proc/self") ? places : places.skip)("are refused at once where nothing can be made", async () => {
  for (const path of ["/proc/no", "/proc/no/such/place"]) {
    const { exit, message } = await failureOf(() => makeRunDirectory(path));
    assert.equal([exit, message], [73, `Cannot make the run directory "${path}": no such file or directory (ENOENT)`]);
  }
});

const names = suite("retireName()");

names("removes a name only while it leads to the very socket that was published", () =>
  withDirectory(async ({ directory }) => {
    const path = join(directory, "s");
    const [ours, theirs] = [createServer(), createServer()];
    try {
      const umask = process.umask(0);
      const bound = await listenBeside(ours, path);
      process.umask(umask);
      assert.is(modeOf(bound.bound), "600");
      publishSocket(bound, path, false);
      publishSocket(bound, path, false); // again: it is ours
      assert.is(lstatSync(path).ino, bound.ino);
      const other = await listenBeside(theirs, path);
      assert.is((await failureOf(() => publishSocket(other, path, false))).exit, 75);
      publishSocket(other, path, true);
      assert.is(lstatSync(path).ino, other.ino);
      retireName(path, bound);
      assert.ok(existsSync(path));
      retireName(path, other);
      assert.not.ok(existsSync(path));
      retireName(path, other);
      writeFileSync(path, "");
      retireName(path, { dev: statSync(path).dev, ino: statSync(path).ino });
      assert.ok(existsSync(path), "a file is not a socket");
      assert.equal(
        filesIn(directory).filter((name) => name !== "given.token"),
        [basename(bound.bound), basename(other.bound), "s"].sort(),
      );
      assert.ok(isSame(bound.bound, bound) && !isSame(bound.bound, other));
    } finally {
      ours.close();
      theirs.close();
    }
  }),
);

names("does not follow a symbolic link to the socket", () =>
  withDirectory(async ({ directory }) => {
    const server = createServer();
    try {
      const bound = await listenBeside(server, join(directory, "s"));
      symlinkSync(bound.bound, join(directory, "link"));
      retireName(join(directory, "link"), bound);
      assert.equal(lookAt(join(directory, "link")), { kind: "other", what: "a symbolic link" });
    } finally {
      server.close();
    }
  }),
);

names("of a path at the limit is bound too, under a name that fits", () =>
  withDirectory(async ({ directory }) => {
    for (const name of ["s", "rpc.sock"]) {
      const path = join(join(directory, "d").padEnd(maxPathBytes - 1 - name.length, "d"), name);
      mkdirSync(join(path, ".."));
      const server = createServer();
      try {
        const { bound, ...socket } = await listenBeside(server, path);
        assert.ok(Buffer.byteLength(bound) <= maxPathBytes, `${bound} has ${Buffer.byteLength(bound)} bytes`);
        assert.equal([lstatSync(bound).ino, lstatSync(bound).isSocket()], [socket.ino, true]);
      } finally {
        await new Promise((done) => server.close(done));
      }
      assert.equal(readdirSync(join(path, "..")), []);
    }
  }),
);

const token = suite("readToken()");

const tokens: [what: string, text: string | Buffer, expected: string | RegExp][] = [
  ["a line", "secret\n", "secret"],
  ["text without a newline", "secret", "secret"],
  ["a line that ends in CRLF", "secret\r\n", "secret"],
  ["spaces around it, which are its own", " \tsecret  \r\n", " \tsecret  "],
  ["spaces inside", "a secret word\n", "a secret word"],
  ["the first of several lines", "one\ntwo\n", "one"],
  ["letters beyond ASCII", "clé 😀\n", "clé 😀"],
  ["4095 bytes", `${"x".repeat(4095)}\n`, "x".repeat(4095)],
  ["4096 bytes", `${"x".repeat(4096)}\n`, /its first line has over 4095 bytes$/],
  ["10 MiB", "x".repeat(10 << 20), /its first line has over 4095 bytes$/],
  ["nothing", "", /it is empty, a token is needed$/],
  ["an empty line", "\nsecret\n", /it is empty, a token is needed$/],
  ["spaces", "  \r\n", /it is empty, a token is needed$/],
  ["what is not UTF-8", Buffer.from("c3a9ff0a", "hex"), /it is not UTF-8$/],
];
for (const [what, text, expected] of tokens) {
  token(`reads ${what}, from a file and from a pipe`, () =>
    withDirectory(async ({ directory }) => {
      const file = join(directory, "t");
      writeFileSync(file, text, { mode: 0o600 });
      const pipe = join(directory, "pipe");
      spawnSync("mkfifo", [pipe]);
      const writer = spawn("sh", ["-c", `cat '${file}' > '${pipe}'`], { stdio: "ignore" });
      for (const path of [file, pipe]) {
        if (typeof expected === "string") assert.is(await readToken(path), expected);
        else {
          const { exit, message, hint } = await failureOf(() => readToken(path), 1500);
          assert.is(exit, 77);
          assert.match(message, expected);
          assert.ok(message.includes(`"${path}"`) && hint !== undefined);
        }
      }
      writer.kill();
    }),
  );
}

const noTokens: [what: string, make: (path: string) => unknown, exit: number, words: RegExp][] = [
  ["a missing file", () => {}, 1, /: no such file or directory \(ENOENT\)$/],
  ["a directory", (path) => mkdirSync(path), 1, /: \w.* directory.*\(EISDIR\)$/],
  [
    "a file that anyone may write",
    (path) => {
      writeFileSync(path, "t\n");
      chmodSync(path, 0o666);
    },
    77,
    /its mode is 666, others must not be able to write to it$/,
  ],
  ["a loop of links", (path) => symlinkSync("t", path), 1, /\(ELOOP\)$/],
];
for (const [what, make, exit, words] of noTokens) {
  token(`refuses ${what}`, () =>
    withDirectory(async ({ directory }) => {
      make(join(directory, "t"));
      const failure = await failureOf(() => readToken(join(directory, "t")));
      assert.is(failure.exit, exit);
      assert.match(failure.message, /^Cannot read the token file ".*\/t": /);
      assert.match(failure.message, words);
      assert.ok(failure.hint);
    }),
  );
}

(process.getuid!() === 0 ? token : token.skip)("judges a file by who else may write to it", () =>
  withDirectory(async ({ directory }) => {
    const path = join(directory, "t");
    chmodSync(directory, 0o755);
    const other = `the token file "${path}" belongs to user 5002, who may read and write it`;
    for (const [uid, owner, mode, outcome] of [
      [0, "0:0", 0o660, /its mode is 660$/],
      [0, "0:6000", 0o660, "its mode is 660, others must not be able to write to it"],
      [0, "5002:5002", 0o600, other],
      [5001, "5001:5001", 0o660, /its mode is 660$/],
      [5001, "5001:6000", 0o620, "its mode is 620, others must not be able to write to it"],
      [5001, "5002:5002", 0o644, "it belongs to user 5002, it must be ours"],
      [5001, "0:0", 0o644, /its mode is 644$/],
    ] as const) {
      writeFileSync(path, "secret\n");
      chmodSync(path, mode);
      execFileSync("chown", [owner, path]);
      const warned: string[] = [];
      process.setegid!(uid);
      process.seteuid!(uid);
      const read = await readToken(path, (text) => warned.push(text)).catch((error: Failure) => error);
      process.seteuid!(0);
      process.setegid!(0);
      const words = read instanceof Failure ? read.message.replace(/^.*?": /, "") : warned.join();
      assert.is(read instanceof Failure ? read.exit : 0, / must /.test(words) ? 77 : 0);
      if (typeof outcome === "string") assert.is(words, outcome);
      else assert.match(words, outcome);
    }
  }),
);
token("warns of a file that others may read, with the command that mends it", () =>
  withDirectory(async ({ directory }) => {
    const path = join(directory, "t");
    for (const [mode, isWarned] of [
      [0o600, false],
      [0o640, true],
      [0o604, true],
    ] as const) {
      writeFileSync(path, "secret\n");
      chmodSync(path, mode);
      const warned: string[] = [];
      assert.is(await readToken(path, (text, hint) => warned.push(text, hint)), "secret");
      const words = `others may read the token file "${path}": its mode is ${mode.toString(8)}`;
      assert.equal(warned, isWarned ? [words, `chmod 600 '${path}'`] : []);
    }
  }),
);

token("reads a descriptor to the end of the first line, though it stays open", () =>
  withDirectory(async ({ directory }) => {
    const pipe = join(directory, "pipe");
    spawnSync("mkfifo", [pipe]);
    const descriptor = openSync(pipe, "r+");
    writeSync(descriptor, "secret\nmore");
    assert.is(await readToken(descriptor), "secret");
    closeSync(descriptor);
  }),
);

token("gives a FIFO that nobody writes to a time, and no longer", () =>
  withDirectory(async ({ directory }) => {
    const pipe = join(directory, "pipe");
    spawnSync("mkfifo", [pipe]);
    const start = Date.now();
    const { exit, message } = await failureOf(() => readToken(pipe, undefined, 200));
    assert.ok(Date.now() - start >= 150);
    assert.is(exit, 77);
    assert.match(message, /it is empty/);
  }),
);

token("puts together what a slow writer writes, and does not wait for the end of one that stays", () =>
  withDirectory(async ({ directory }) => {
    const pipe = join(directory, "pipe");
    spawnSync("mkfifo", [pipe]);
    const slow = spawn("sh", ["-c", `exec > '${pipe}'; sleep 0.1; printf se; sleep 0.2; printf 'cret\\n'`], {
      stdio: "ignore",
    });
    assert.is(await readToken(pipe, undefined, 20_000), "secret");
    slow.kill();
    await sleep(50);
    const staying = spawn("sh", ["-c", `exec > '${pipe}'; echo secret; exec sleep 100`], { stdio: "ignore" });
    const start = Date.now();
    assert.is(await readToken(pipe, undefined, 20_000), "secret");
    assert.ok(Date.now() - start < busyMs(1500));
    staying.kill("SIGKILL");
  }),
);

token("of our own making is kept, 0600, and made anew where it is empty", () =>
  withDirectory(async ({ directory }) => {
    const path = join(directory, "own");
    const made = ownToken(path);
    assert.match(made, /^[0-9a-f]{64}$/);
    assert.equal([ownToken(path), modeOf(path)], [made, "600"]);
    writeFileSync(path, "");
    assert.is.not(ownToken(path), made);
    // the daemon took the whole file for its token, those who read the file it had named the first line
    writeFileSync(path, " mine \nand a note\n");
    assert.equal([ownToken(path), await readToken(path)], [" mine ", " mine "]);
    chmodSync(path, 0o666);
    assert.is((await failureOf(() => ownToken(path))).exit, 77);
  }),
);

for (const test of [places, names, token]) test.run();
