import { execFileSync, spawn, spawnSync } from "node:child_process";
import {
  chmodSync,
  copyFileSync,
  existsSync,
  linkSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { suite } from "uvu";
import { Failure } from "../failure.ts";
import { createFiles, decodeBase64, resolvePath } from "../files.ts";
import { JsonPieces } from "../rpc.ts";
import * as assert from "uvu/assert";

const isRoot = process.getuid?.() === 0;

/** Runs a test with a directory of its own, which is also the home; nothing of it stays, and no descriptor. */
async function withDirectory(
  run: (directory: string, call: (name: string, params: object) => Promise<any>) => unknown,
): Promise<void> {
  const directory = mkdtempSync(join(tmpdir(), "holdfast-files-"));
  const methods = createFiles(() => directory);
  const call = async (name: string, params: object): Promise<any> => {
    const result: any = await methods.get(`files.${name}`)!(params as Record<string, unknown>, undefined as never);
    return result instanceof JsonPieces ? JSON.parse(String(Buffer.concat(result.pieces))) : result;
  };
  const open = openDescriptors();
  try {
    await run(directory, call);
    assert.equal(openDescriptors(), open, "no descriptor stays open");
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

function openDescriptors(): number {
  return existsSync("/proc/self/fd") ? readdirSync("/proc/self/fd").length : 0;
}

async function failureOf(promise: Promise<unknown>): Promise<Failure> {
  const result = await promise.then(
    (value) => ({ value }),
    (error: unknown) => ({ error }),
  );
  assert.ok("error" in result, `expected a failure, got ${JSON.stringify(result)}`);
  assert.instance(result.error, Failure);
  return result.error as Failure;
}

/** Makes one of each kind of file that is not a regular one. */
async function withOddFiles(
  directory: string,
  run: (odd: [path: string, what: string, errno: string][]) => unknown,
): Promise<void> {
  const at = (name: string) => join(directory, name);
  execFileSync("mkfifo", [at("fifo")]);
  mkdirSync(at("dir"));
  symlinkSync("fifo", at("link"));
  const server = createServer().listen(at("socket"));
  await new Promise((done) => server.once("listening", done));
  try {
    await run([
      [at("fifo"), "a FIFO", "EINVAL"],
      [at("link"), "a FIFO", "EINVAL"],
      [at("dir"), "a directory", "EISDIR"],
      [at("socket"), "a socket", "EINVAL"],
      ["/dev/zero", "a character device", "EINVAL"],
      ["/dev/tty", "a character device", "EINVAL"],
    ]);
  } finally {
    await new Promise((done) => server.close(done));
  }
}

const paths = suite("resolvePath()");

for (const [path, resolved] of [
  ["/a/b", "/a/b"],
  ["/", "/"],
  ["~", "/home/ann"],
  ["~/", "/home/ann/"],
  ["~/a b", "/home/ann/a b"],
  ["a/b", "/home/ann/a/b"],
  ["./a", "/home/ann/./a"],
  ["~bob/x", "/home/ann/~bob/x"],
  ["/link/../x", "/link/../x"],
  ["__proto__", "/home/ann/__proto__"],
] as const) {
  paths(`makes ${path} ${resolved}`, () =>
    assert.is(
      resolvePath(path, () => "/home/ann"),
      resolved,
    ),
  );
}
paths("refuses a NUL, and names the parameter", () => {
  assert.throws(
    () => resolvePath("/a\0b", () => "/", "cwd"),
    (error: Failure) => error.code === -32602 && error.message.includes('"cwd"'),
  );
});
paths.run();

const base64 = suite("decodeBase64()");

for (const [text, hex] of [
  ["", ""],
  ["AA==", "00"],
  ["AAE=", "0001"],
  ["AAEC", "000102"],
  ["+/+/", "fbffbf"],
] as const) {
  base64(`decodes ${JSON.stringify(text)}`, () => assert.is(decodeBase64(text, "data").toString("hex"), hex));
}
for (const text of [
  "A",
  "AA",
  "AAE",
  "AA=",
  "AB==",
  "AA==AA==",
  "AA ==",
  "AAE=\n",
  "-_-_",
  "AA*=",
  "=",
  "AAE=x",
  "é",
]) {
  base64(`refuses ${JSON.stringify(text)}`, () => {
    assert.throws(
      () => decodeBase64(text, "data"),
      (error: Failure) => error.code === -32602 && error.message.includes('"data"'),
    );
  });
}
base64.run();

const stat = suite("files.stat");

stat("describes a file", () =>
  withDirectory(async (directory, call) => {
    writeFileSync(join(directory, "f"), "12345");
    chmodSync(join(directory, "f"), 0o640);
    utimesSync(join(directory, "f"), 1000, 1234.5);
    assert.equal(await call("stat", { path: "~/f" }), {
      exists: true,
      isDir: false,
      size: 5,
      mode: "-rw-r-----",
      mtimeMs: 1234500,
    });
  }),
);
stat("follows a symbolic link", () =>
  withDirectory(async (directory, call) => {
    mkdirSync(join(directory, "d"));
    symlinkSync("d", join(directory, "l"));
    const { isDir, mode } = await call("stat", { path: "l" });
    assert.equal([isDir, mode[0]], [true, "d"]);
  }),
);
for (const path of ["absent", "f/below-a-file", "dangling"]) {
  stat(`answers that ${path} does not exist`, () =>
    withDirectory(async (directory, call) => {
      writeFileSync(join(directory, "f"), "");
      symlinkSync("nowhere", join(directory, "dangling"));
      assert.equal(await call("stat", { path }), { exists: false, isDir: false, size: 0, mode: "" });
    }),
  );
}
for (const [mode, text] of [
  [0o000, "----------"],
  [0o777, "-rwxrwxrwx"],
  [0o644, "-rw-r--r--"],
  [0o4755, "-rwsr-xr-x"],
  [0o2745, "-rwxr-Sr-x"],
  [0o1666, "-rw-rw-rwT"],
] as const) {
  stat(`writes mode 0${mode.toString(8)} as ${text}`, () =>
    withDirectory(async (directory, call) => {
      writeFileSync(join(directory, "f"), "");
      chmodSync(join(directory, "f"), mode);
      assert.is((await call("stat", { path: "f" })).mode, text);
    }),
  );
}
stat("writes the type of other files", () =>
  withDirectory((directory, call) =>
    withOddFiles(directory, async () => {
      const letters = [];
      for (const path of ["fifo", "dir", "socket", "/dev/zero"]) letters.push((await call("stat", { path })).mode[0]);
      assert.is(letters.join(""), "pdsc");
    }),
  ),
);
stat("names operation, path and reason of an error", () =>
  withDirectory(async (directory, call) => {
    symlinkSync("loop", join(directory, "loop"));
    const failure = await failureOf(call("stat", { path: "loop" }));
    assert.is(failure.message, `Cannot stat "${directory}/loop": too many symbolic links encountered (ELOOP)`);
    assert.equal([failure.code, failure.data], [-32603, { errno: "ELOOP" }]);
  }),
);
for (const params of [{}, { path: "" }, { path: 7 }, { path: "a\0b" }]) {
  stat(`refuses ${JSON.stringify(params)}`, () =>
    withDirectory(async (_, call) => {
      assert.is((await failureOf(call("stat", params))).code, -32602);
    }),
  );
}
stat.run();

const list = suite("files.list");

list("sorts by bytes, leaves hidden names out, and marks directories and links", () =>
  withDirectory(async (directory, call) => {
    const names = ["b", "B", "a\nb", "é", "\uffee", "\u{1f600}", "z", "__proto__"]; // U+1F600: the last by bytes, before U+FFEE by UTF-16
    for (const name of names) writeFileSync(join(directory, name), "");
    mkdirSync(join(directory, "dir"));
    for (const [name, to] of [
      ["to-dir", "dir"],
      ["to-file", "b"],
      ["to-nothing", "x"],
    ] as const)
      symlinkSync(to, join(directory, name));
    writeFileSync(join(directory, ".hidden"), "");
    const { entries } = await call("list", { path: directory });
    assert.equal(
      entries.map(({ name }: { name: string }) => name),
      ["B", "__proto__", "a\nb", "b", "dir", "to-dir", "to-file", "to-nothing", "z", "é", "\uffee", "\u{1f600}"],
    );
    assert.equal(entries.slice(4, 8), [
      { name: "dir", path: `${directory}/dir`, isDir: true },
      { name: "to-dir", path: `${directory}/to-dir`, isDir: true, isSymlink: true },
      { name: "to-file", path: `${directory}/to-file`, isDir: false, isSymlink: true },
      { name: "to-nothing", path: `${directory}/to-nothing`, isDir: false, isSymlink: true },
    ]);
    const all = await call("list", { path: `${directory}/`, includeHidden: true });
    assert.equal(all.entries[0], { name: ".hidden", path: `${directory}/.hidden`, isDir: false });
  }),
);
for (const count of [0, 1, 127, 128, 129, 256, 5000]) {
  list(`has ${count} entries in order, and others have their turn meanwhile`, () =>
    withDirectory(async (directory, call) => {
      const names = Array.from({ length: count }, (_, i) => `${(i * 7919) % 5003}-é`);
      for (const name of names) writeFileSync(join(directory, name), "");
      let turns = 0;
      const watch = (): void => void (turns++, (immediate = setImmediate(watch)));
      let immediate = setImmediate(watch);
      const real = globalThis.setImmediate;
      let given = 0; // by the list itself
      globalThis.setImmediate = ((listener: () => void) => (
        listener !== watch && given++, real(listener)
      )) as typeof setImmediate;
      const { entries } = await call("list", { path: directory }).finally(() => (globalThis.setImmediate = real));
      clearImmediate(immediate);
      assert.equal(
        entries.map(({ name }: { name: string }) => name),
        [...names].sort((a, b) => Buffer.compare(Buffer.from(a), Buffer.from(b))),
      );
      assert.ok(turns >= (2 * count) / 128, `${turns} turns`);
      const steps = Math.max(Math.ceil(count / 128), 1);
      const least = steps - 1 + Math.floor(count / 128) * Math.floor(Math.log2(steps)); // encoded step by step; and merged, each entry so often
      assert.ok(given >= least, `${given} turns were given, ${least} are needed`);
    }),
  );
}
// what was thrown before the list began had nobody to catch it, and ended the daemon
list("refuses an includeHidden that is neither true nor false", () =>
  withDirectory(async (directory, call) => {
    const error = await call("list", { path: directory, includeHidden: [] }).catch((reason: unknown) => reason);
    assert.ok(error instanceof Failure);
    assert.is(error.code, -32602);
  }),
);
list("lists the root with single slashes", () =>
  withDirectory(async (_, call) => {
    const { entries } = await call("list", { path: "/" });
    assert.ok(entries.some(({ path, isDir }: { path: string; isDir: boolean }) => path === "/tmp" && isDir));
  }),
);
for (const [path, errno] of [
  ["absent", "ENOENT"],
  ["f", "ENOTDIR"],
  ["fifo", "ENOTDIR"],
] as const) {
  list(`refuses ${path} with ${errno}`, () =>
    withDirectory(async (directory, call) => {
      writeFileSync(join(directory, "f"), "");
      execFileSync("mkfifo", [join(directory, "fifo")]);
      const failure = await failureOf(call("list", { path }));
      assert.match(failure.message, `Cannot list "${directory}/${path}": `);
      assert.equal(failure.data, { errno });
    }),
  );
}
list("lists 100000 entries without holding up the loop", () =>
  withDirectory(async (directory, call) => {
    execFileSync("sh", ["-c", "seq -f 'file-%06g' 100000 | xargs touch"], { cwd: directory });
    let longest = 0; // CPU time, which other processes do not add to
    let last = process.cpuUsage().user;
    const timer = setInterval(() => {
      longest = Math.max(longest, process.cpuUsage().user - last);
      last += process.cpuUsage().user - last;
    }, 1);
    const { entries } = await call("list", { path: directory });
    await new Promise((done) => setTimeout(done, 5));
    clearInterval(timer);
    assert.is(entries.length, 100_000);
    assert.is(entries[99_999].name, "file-100000");
    assert.ok(longest < 500_000, `held up for ${Math.round(longest / 1000)} ms`);
  }),
);
list("refuses a listing that no answer can hold, before it holds it all", () =>
  withDirectory(async (directory, call) => {
    const deep = join(directory, ...Array(14).fill("d".repeat(250))); // a path of 3500 bytes, which each entry repeats
    mkdirSync(deep, { recursive: true });
    execFileSync("sh", ["-c", "seq -f '%0200g' 5000 | xargs touch"], { cwd: deep });
    assert.match((await failureOf(call("list", { path: deep }))).message, "an answer has at most");
  }),
);
list.run();

const read = suite("files.read");

for (const [name, bytes] of Object.entries({
  empty: "",
  ascii: "hello\n",
  "a BOM": "\ufeffx",
  "every plane": "aé€😀\0",
})) {
  read(`returns a file of ${name}, in both encodings`, () =>
    withDirectory(async (directory, call) => {
      writeFileSync(join(directory, "f"), bytes);
      const size = Buffer.byteLength(bytes);
      assert.equal(await call("read", { path: "f" }), { content: bytes, exists: true, size });
      const content = Buffer.from(bytes).toString("base64");
      assert.equal(await call("read", { path: "f", encoding: "base64" }), { content, exists: true, size });
    }),
  );
}
for (const path of ["absent", "f/x"]) {
  read(`answers that ${path} does not exist`, () =>
    withDirectory(async (directory, call) => {
      writeFileSync(join(directory, "f"), "");
      assert.equal(await call("read", { path }), { content: "", exists: false });
    }),
  );
}
for (const [maxBytes, size, fits] of [
  [undefined, 262_144, true],
  [undefined, 262_145, false],
  [9, 9, true],
  [9, 10, false],
  [1 << 30, 70_000, true],
] as const) {
  read(`${fits ? "returns" : "refuses"} ${size} bytes where maxBytes is ${maxBytes ?? "left out"}`, () =>
    withDirectory(async (directory, call) => {
      writeFileSync(join(directory, "f"), "x".repeat(size));
      if (fits) return assert.is((await call("read", { path: "f", maxBytes })).content.length, size);
      const { message, data } = await failureOf(call("read", { path: "f", maxBytes }));
      assert.match(message, `it has ${size} bytes, at most ${maxBytes ?? 262_144} are read`);
      assert.equal(data?.errno, "EFBIG");
    }),
  );
}
read("does not read a sparse terabyte", () =>
  withDirectory(async (directory, call) => {
    writeFileSync(join(directory, "f"), "");
    truncateSync(join(directory, "f"), 2 ** 40);
    assert.match(
      (await failureOf(call("read", { path: "f", maxBytes: 2 ** 50 }))).message,
      "1099511627776 bytes, at most 16777215",
    );
  }),
);
read("reads files in /proc, whose size is 0", () =>
  withDirectory(async (_, call) => {
    assert.match((await call("read", { path: "/proc/self/status" })).content, /^Name:/);
    assert.match(
      (await failureOf(call("read", { path: "/proc/self/status", maxBytes: 10 }))).message,
      "more than 10 bytes",
    );
  }),
);
for (const [offset, content, nextOffset] of [
  [0, "0123", 4],
  [4, "4567", 8],
  [8, "89", 10],
  [10, "", 10],
  [999, "", 999],
] as const) {
  read(`returns a window of 4 bytes at ${offset}`, () =>
    withDirectory(async (directory, call) => {
      writeFileSync(join(directory, "f"), "0123456789");
      assert.equal(await call("read", { path: "f", offset, maxBytes: 4 }), {
        content,
        exists: true,
        size: 10,
        nextOffset,
      });
      const inBase64 = await call("read", { path: "f", offset, maxBytes: 4, encoding: "base64" });
      assert.equal(inBase64, { content: Buffer.from(content).toString("base64"), exists: true, size: 10, nextOffset });
    }),
  );
}
for (const maxBytes of [1, 4, 5, 6, 7, 8]) {
  read(`cuts no character where windows of ${maxBytes} bytes meet`, () =>
    withDirectory(async (directory, call) => {
      const text = "aé€😀".repeat(5);
      writeFileSync(join(directory, "f"), text);
      let whole = "";
      for (let offset = 0, size = 1; offset < size; ) {
        const window = await call("read", { path: "f", offset, maxBytes });
        assert.ok(window.nextOffset > offset);
        whole += window.content;
        ({ nextOffset: offset, size } = window);
      }
      assert.is(whole, text);
    }),
  );
}
for (const [offset, content] of [
  [1, "€b"],
  [2, "€b"],
  [3, "€b"],
  [4, "€b"],
  [5, "b"],
  [6, "b"],
  [7, "b"],
  [8, ""],
] as const) {
  read(`leaves a character that begins before offset ${offset} out`, () =>
    withDirectory(async (directory, call) => {
      writeFileSync(join(directory, "f"), "😀€b");
      assert.equal(await call("read", { path: "f", offset }), { content, exists: true, size: 8, nextOffset: 8 });
    }),
  );
}
for (const hex of ["ff", "61ff62", "c3", "61c3", "e282", "f09f98", "eda080", "c0af", "80"]) {
  read(`refuses the bytes ${hex} as utf8, and names the remedy`, () =>
    withDirectory(async (directory, call) => {
      writeFileSync(join(directory, "f"), Buffer.from(hex, "hex"));
      const { message, data, hint } = await failureOf(call("read", { path: "f" }));
      assert.equal([message, data], [`Cannot read "${directory}/f" as utf8: it is not UTF-8`, { errno: "EILSEQ" }]);
      assert.match(hint!, "base64");
      assert.is(
        (await call("read", { path: "f", encoding: "base64" })).content,
        Buffer.from(hex, "hex").toString("base64"),
      );
    }),
  );
}
read("ends a window before a character that is still being written, and refuses it alone", () =>
  withDirectory(async (directory, call) => {
    writeFileSync(join(directory, "f"), Buffer.from("6162e282", "hex"));
    assert.equal(await call("read", { path: "f", offset: 0 }), { content: "ab", exists: true, size: 4, nextOffset: 2 });
    assert.is((await failureOf(call("read", { path: "f", offset: 2 }))).data?.errno, "EILSEQ");
  }),
);
read("leaves nothing out of a window at the beginning: there is no character before it", () =>
  withDirectory(async (directory, call) => {
    writeFileSync(join(directory, "f"), Buffer.from("806162", "hex"));
    assert.is((await failureOf(call("read", { path: "f", offset: 0 }))).data?.errno, "EILSEQ");
    assert.is((await call("read", { path: "f", offset: 1 })).content, "ab");
  }),
);
read("refuses at once what is not a regular file", () =>
  withDirectory((directory, call) =>
    withOddFiles(directory, async (odd) => {
      const start = performance.now();
      for (const [path, what, errno] of odd) {
        const failure = await failureOf(call("read", { path }));
        assert.is(failure.message, `Cannot read "${path}": it is ${what}, it must be a regular file`);
        assert.equal(failure.data, { errno });
      }
      assert.ok(performance.now() - start < 5000);
    }),
  ),
);
for (const params of [
  { offset: -1 },
  { offset: 1.5 },
  { offset: 2 ** 60 },
  { maxBytes: 0 },
  { maxBytes: "9" },
  { encoding: "latin1" },
  { encoding: "" },
]) {
  read(`refuses ${JSON.stringify(params)}`, () =>
    withDirectory(async (directory, call) => {
      writeFileSync(join(directory, "f"), "x");
      assert.is((await failureOf(call("read", { path: "f", ...params }))).code, -32602);
    }),
  );
}
read.run();

const write = suite("files.write");

const namesIn = (directory: string) => readdirSync(directory).sort();
const modeOf = (path: string) => (statSync(path).mode & 0o7777).toString(8);

for (const [params, hex] of [
  [{ content: "" }, ""],
  [{ content: "é\0" }, "c3a900"],
  [{ content: "AP+A", encoding: "base64" }, "00ff80"],
  [{ content: "", encoding: "base64" }, ""],
] as const) {
  write(`writes ${JSON.stringify(params)}, new and over another`, () =>
    withDirectory(async (directory, call) => {
      for (let turn = 0; turn < 2; turn++) {
        assert.equal(await call("write", { path: "f", ...params }), { written: hex.length / 2 });
        assert.is(readFileSync(join(directory, "f"), "hex"), hex);
        assert.equal(namesIn(directory), ["f"]);
        writeFileSync(join(directory, "f"), "what was there before, and is longer");
      }
    }),
  );
}
for (const [mode, before, after] of [
  [undefined, undefined, (0o666 & ~process.umask()).toString(8)],
  [undefined, 0o751, "751"],
  [undefined, 0o4711, "4711"],
  ["0600", undefined, "600"],
  ["755", 0o644, "755"],
  ["0o640", 0o644, "640"],
  [420, 0o600, "644"],
  [0, undefined, "0"],
  ["07777", undefined, "7777"],
] as const) {
  const was = before === undefined ? "new" : `0${before.toString(8)}`;
  write(`leaves mode ${after} where ${JSON.stringify(mode) ?? "none"} is given for a file that was ${was}`, () =>
    withDirectory(async (directory, call) => {
      const path = join(directory, "f");
      if (before !== undefined) writeFileSync(path, "");
      if (before !== undefined) chmodSync(path, before);
      await call("write", { path, content: "x", ...(mode === undefined ? {} : { mode }) });
      assert.is(modeOf(path), after);
    }),
  );
}
for (const params of [
  { mode: "0999" },
  { mode: 0o10000 },
  { mode: -1 },
  { mode: "rw" },
  { mode: 1.5 },
  { mode: "" },
  { content: 5 },
  { content: undefined },
  { encoding: "base64", content: "A" },
  { encoding: "hex" },
  { createDirs: 1 },
]) {
  write(`refuses ${JSON.stringify(params)}, and writes nothing`, () =>
    withDirectory(async (directory, call) => {
      assert.is((await failureOf(call("write", { path: "f", content: "x", ...params }))).code, -32602);
      assert.equal(namesIn(directory), []);
    }),
  );
}
write("makes directories only when told to", () =>
  withDirectory(async (directory, call) => {
    const failure = await failureOf(call("write", { path: "a/b/f", content: "x" }));
    assert.is(failure.message, `Cannot write "${directory}/a/b/f": no such file or directory (ENOENT)`);
    assert.equal(failure.data, { errno: "ENOENT" });
    await call("write", { path: "a/b/f", content: "x", createDirs: true });
    assert.is(readFileSync(join(directory, "a/b/f"), "utf8"), "x");
  }),
);
for (const [path, errno] of [
  ["f/x", "ENOTDIR"],
  ["dir/", "EISDIR"],
  ["new/", "EISDIR"],
  ["dir/.", "EISDIR"],
  ["dir/..", "EISDIR"],
  ["loop", "ELOOP"],
] as const) {
  write(`refuses ${path} with ${errno}`, () =>
    withDirectory(async (directory, call) => {
      writeFileSync(join(directory, "f"), "");
      mkdirSync(join(directory, "dir"));
      symlinkSync("loop", join(directory, "loop"));
      const failure = await failureOf(call("write", { path, content: "x" }));
      assert.match(failure.message, `Cannot write "${directory}/${path}": `);
      assert.equal(failure.data, { errno });
      assert.equal(namesIn(directory), ["dir", "f", "loop"]);
    }),
  );
}
write("refuses what is not a regular file, at once", () =>
  withDirectory((directory, call) =>
    withOddFiles(directory, async (odd) => {
      const before = namesIn(directory);
      for (const [path, what, errno] of odd) {
        const failure = await failureOf(call("write", { path, content: "x" }));
        assert.is(failure.message, `Cannot write "${path}": it is ${what}, it must be a regular file`);
        assert.equal(failure.data, { errno });
      }
      assert.equal(namesIn(directory), before);
      assert.ok(lstatSync(join(directory, "link")).isSymbolicLink());
    }),
  ),
);
write("writes through symbolic links, beside the file that they lead to", () =>
  withDirectory(async (directory, call) => {
    mkdirSync(join(directory, "real/deep"), { recursive: true });
    writeFileSync(join(directory, "real/f"), "old");
    symlinkSync("real/deep", join(directory, "d"));
    symlinkSync("d/../f", join(directory, "one")); // ".." after a link: real/f, not f
    symlinkSync(join(directory, "one"), join(directory, "two"));
    await call("write", { path: "two", content: "new" });
    assert.is(readFileSync(join(directory, "real/f"), "utf8"), "new");
    assert.equal(
      [readlinkSync(join(directory, "one")), readlinkSync(join(directory, "two"))],
      ["d/../f", join(directory, "one")],
    );
    assert.equal(
      [namesIn(directory), namesIn(join(directory, "real"))],
      [
        ["d", "one", "real", "two"],
        ["deep", "f"],
      ],
    );
  }),
);
write("makes the file that a dangling link means", () =>
  withDirectory(async (directory, call) => {
    mkdirSync(join(directory, "d"));
    symlinkSync("d/new", join(directory, "l"));
    await call("write", { path: "l", content: "x" });
    assert.is(readFileSync(join(directory, "d/new"), "utf8"), "x");
    assert.ok(lstatSync(join(directory, "l")).isSymbolicLink());
  }),
);
write("never shows a part: a reader sees the old or the new, and another hard link keeps the old", () =>
  withDirectory(async (directory, call) => {
    const contents = ["a".repeat(1 << 20), "b".repeat(1 << 20)];
    writeFileSync(join(directory, "f"), contents[0]!);
    linkSync(join(directory, "f"), join(directory, "hard"));
    let isWriting = true;
    const writing = (async () => {
      for (let turn = 0; turn < 10; turn++) await call("write", { path: "f", content: contents[(turn + 1) % 2] });
      isWriting = false;
    })();
    let looks = 0;
    for (; isWriting; looks++) {
      assert.ok(contents.includes((await call("read", { path: "f", maxBytes: 1 << 21 })).content));
    }
    await writing;
    assert.ok(looks > 0);
    assert.is(readFileSync(join(directory, "hard"), "utf8"), contents[0]);
  }),
);
write("leaves one whole content when many write at once, and nothing beside", () =>
  withDirectory(async (directory, call) => {
    const contents = Array.from({ length: 20 }, (_, at) => `${at}-`.repeat(10_000));
    await Promise.all(contents.map((content) => call("write", { path: "f", content })));
    assert.ok(contents.includes(readFileSync(join(directory, "f"), "utf8")));
    assert.equal(namesIn(directory), ["f"]);
  }),
);
write("takes a name of 255 bytes", () =>
  withDirectory(async (directory, call) => {
    await call("write", { path: "n".repeat(255), content: "x" });
    assert.is((await failureOf(call("write", { path: "n".repeat(256), content: "x" }))).data?.errno, "ENAMETOOLONG");
    assert.equal(namesIn(directory), ["n".repeat(255)]);
  }),
);
const canMount = isRoot && spawnSync("unshare", ["--mount", "true"]).status === 0;
(canMount ? write : write.skip)("removes its temporary file when the disk is full", () =>
  withDirectory(async (directory, call) => {
    execFileSync("mount", ["-t", "tmpfs", "-o", "size=64k", "none", directory]);
    try {
      writeFileSync(join(directory, "f"), "old");
      const failure = await failureOf(call("write", { path: "f", content: "x".repeat(1 << 20) }));
      assert.is(failure.message, `Cannot write "${directory}/f": no space left on device (ENOSPC)`);
      assert.equal([namesIn(directory), readFileSync(join(directory, "f"), "utf8")], [["f"], "old"]);
    } finally {
      execFileSync("umount", [directory]);
    }
  }),
);
write("replaces a program that is running", () =>
  withDirectory(async (directory, call) => {
    const path = join(directory, "f");
    copyFileSync("/bin/sleep", path);
    const child = spawn(path, ["10"]);
    try {
      await call("write", { path, content: "new" });
      assert.equal(
        [readFileSync(path, "utf8"), statSync(path).mode & 0o111],
        ["new", statSync("/bin/sleep").mode & 0o111],
      );
    } finally {
      child.kill();
      await new Promise((done) => child.once("close", done));
    }
  }),
);
write("keeps the owner where it may, and refuses a file that may not be written", () =>
  withDirectory(async (directory, call) => {
    const path = join(directory, "f");
    writeFileSync(path, "old");
    if (isRoot) {
      execFileSync("chown", ["12345:54321", path]);
      await call("write", { path, content: "new" });
      assert.equal([statSync(path).uid, statSync(path).gid], [12345, 54321]);
      return;
    }
    chmodSync(path, 0o444);
    assert.is((await failureOf(call("write", { path, content: "new" }))).data?.errno, "EACCES");
    assert.equal([namesIn(directory), readFileSync(path, "utf8")], [["f"], "old"]);
  }),
);
write.run();

const validate = suite("files.validate");

for (const [path, valid, isDir, reason] of [
  ["~", true, true, undefined],
  ["f", true, false, undefined],
  ["link", true, true, undefined],
  ["absent", false, false, "no such file or directory (ENOENT)"],
  ["f/x", false, false, "not a directory (ENOTDIR)"],
  ["loop", false, false, "too many symbolic links encountered (ELOOP)"],
] as const) {
  validate(`answers ${valid} for ${path}`, () =>
    withDirectory(async (directory, call) => {
      writeFileSync(join(directory, "f"), "");
      symlinkSync(".", join(directory, "link"));
      symlinkSync("loop", join(directory, "loop"));
      const error = reason === undefined ? {} : { error: `Cannot use "${directory}/${path}": ${reason}` };
      assert.equal(await call("validate", { path }), { valid, isDir, ...error });
    }),
  );
}
validate("answers false for what is neither file nor directory, at once", () =>
  withDirectory((directory, call) =>
    withOddFiles(directory, async () => {
      const error = `Cannot read "${directory}/fifo": it is a FIFO, it must be a regular file`;
      assert.equal(await call("validate", { path: "fifo" }), { valid: false, isDir: false, error });
    }),
  ),
);
validate.run();
