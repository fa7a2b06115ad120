// time limit: 150 s
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
import * as assert from "uvu/assert";
import { Failure } from "../failure.ts";
import { createFiles, resolvePath } from "../files.ts";
import { decodeBase64, JsonPieces } from "../rpc.ts";
import { busyMs, canMount, inMemory } from "./daemon.ts";

const isRoot = process.getuid?.() === 0;

/** Runs a test with a directory of its own, which is also the home; nothing of it stays, and no descriptor. */
async function withDirectory(
  run: (directory: string, call: (name: string, params: object) => Promise<any>) => unknown,
  parent = tmpdir(),
): Promise<void> {
  const directory = mkdtempSync(join(parent, "holdfast-files-"));
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
for (const path of ["absent", "dangling"]) {
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
for (const name of ["stat", "read"]) {
  stat(`is an error where files.${name} goes through a file, or may not look: only absent means absent`, () =>
    withDirectory(async (directory, call) => {
      writeFileSync(join(directory, "f"), "x");
      symlinkSync("loop", join(directory, "loop"));
      for (const [path, errno] of [
        ["f/below", "ENOTDIR"],
        ["f/", "ENOTDIR"],
        ["loop/x", "ELOOP"],
        ["n".repeat(256), "ENAMETOOLONG"],
      ] as const)
        assert.is((await failureOf(call(name, { path }))).data.errno, errno, path);
    }),
  );
}
for (const name of ["stat", "list", "read", "write", "validate"]) {
  stat(`refuses a member that files.${name} does not know, and names those that it does`, () =>
    withDirectory(async (directory, call) => {
      const failure = await failureOf(call(name, { path: directory, content: "x", pth: "y" }));
      assert.is(failure.code, -32602);
      assert.match(failure.message, name === "write" ? /"pth".*it takes path, content,/ : /"content".*it takes path/);
      const { message } = await failureOf(
        call(name, { path: { raw: "Lw==", row: 1 }, ...(name === "write" ? { content: "" } : {}) }),
      );
      assert.match(message, /"row".*it takes raw$/);
    }),
  );
}
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
      const watch = (): void => {
        turns++;
        immediate = setImmediate(watch);
      };
      let immediate = setImmediate(watch);
      const real = globalThis.setImmediate;
      let given = 0; // by the list itself
      globalThis.setImmediate = ((listener: () => void) => {
        if (listener !== watch) given++;
        return real(listener);
      }) as typeof setImmediate;
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
    }, inMemory),
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
list("marks a name that is not UTF-8, and what it is used by: raw, in every path", () =>
  withDirectory(async (directory, call) => {
    const names = [Buffer.from("a\xff.txt", "latin1"), Buffer.from("dir\xe9", "latin1"), Buffer.from("ok�é")];
    const at = (name: Buffer, more = "") => Buffer.concat([Buffer.from(`${directory}/`), name, Buffer.from(more)]);
    writeFileSync(at(names[0]!), "first");
    mkdirSync(at(names[1]!));
    writeFileSync(at(names[2]!), "");
    const { entries } = await call("list", { path: "~" });
    assert.equal(entries, [
      { name: "a�.txt", path: `${directory}/a�.txt`, isDir: false, lossy: true, raw: at(names[0]!).toString("base64") },
      { name: "dir�", path: `${directory}/dir�`, isDir: true, lossy: true, raw: at(names[1]!).toString("base64") },
      { name: "ok�é", path: `${directory}/ok�é`, isDir: false },
    ]);
    const [file, folder] = entries.map(({ raw }: { raw: string }) => ({ raw }));
    assert.is((await call("read", { path: file })).content, "first");
    assert.is((await call("stat", { path: { raw: names[0]!.toString("base64") } })).size, 5, "relative: from home");
    assert.equal(await call("validate", { path: folder }), { valid: true, isDir: true });
    const inside = { raw: at(names[1]!, "/b").toString("base64") };
    assert.equal(await call("write", { path: inside, content: "in it" }), { written: 5 });
    assert.is((await call("write", { path: file, content: "again" })).written, 5);
    assert.is(readFileSync(at(names[0]!), "utf8"), "again");
    const listed = await call("list", { path: folder });
    assert.equal(listed.entries, [{ name: "b", path: `${directory}/dir�/b`, isDir: false, lossy: true, ...inside }]);
    const { message } = await failureOf(call("read", { path: folder }));
    assert.is(message, `Cannot read "${directory}/dir�": it is a directory, it must be a regular file`);
    for (const raw of ["", "a", "AA==", 7, undefined])
      assert.is((await failureOf(call("stat", { path: { raw } }))).code, -32602);
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
    assert.ok(longest < busyMs(500_000), `held up for ${Math.round(longest / 1000)} ms`);
  }, inMemory),
);
list("refuses a listing that no answer can hold, before it holds it all", () =>
  withDirectory(async (directory, call) => {
    const deep = join(directory, ...Array(14).fill("d".repeat(250))); // a path of 3500 bytes, which each entry repeats
    mkdirSync(deep, { recursive: true });
    execFileSync("sh", ["-c", "seq -f '%0200g' 5000 | xargs touch"], { cwd: deep });
    assert.match((await failureOf(call("list", { path: deep }))).message, "an answer has at most");
  }, inMemory),
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
for (const path of ["absent"]) {
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
for (const maxBytes of [0, -1, null]) {
  read(`takes ${maxBytes} for the default`, () =>
    withDirectory(async (directory, call) => {
      writeFileSync(join(directory, "f"), "x".repeat(262_144));
      assert.is((await call("read", { path: "f", maxBytes })).content.length, 262_144);
      truncateSync(join(directory, "f"), 262_145);
      assert.match(
        (await failureOf(call("read", { path: "f", maxBytes }))).message,
        /at most 262144 are read at once$/,
      );
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
read("encodes a large file in steps, wherever they cut its characters", () =>
  withDirectory(async (directory, call) => {
    const text = `\ufeff${'a"\n€😀\u0001'.repeat(100_000)}`;
    const bytes = Buffer.from(text);
    writeFileSync(join(directory, "f"), bytes);
    const maxBytes = 4 << 20;
    const answer = await createFiles(() => directory).get("files.read")!({ path: "f", maxBytes }, undefined as never);
    const { pieces } = answer as JsonPieces;
    assert.is(pieces.length, 2 + Math.ceil(bytes.length / (192 << 10)));
    const found = JSON.parse(String(Buffer.concat(pieces)));
    assert.equal([found.content === text, found.exists, found.size], [true, true, bytes.length]);
    const window = await call("read", { path: "f", maxBytes: 1_000_000, offset: 5 });
    assert.ok(window.content === bytes.toString("utf8", 5, window.nextOffset) && window.nextOffset > 999_900);
    const inBase64 = await call("read", { path: "f", maxBytes, encoding: "base64" });
    assert.ok(inBase64.content === bytes.toString("base64"));
    writeFileSync(join(directory, "f"), Buffer.concat([bytes, Buffer.from([0xe2])]));
    assert.is((await failureOf(call("read", { path: "f", maxBytes }))).data?.errno, "EILSEQ");
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
      assert.ok(performance.now() - start < busyMs(5000));
    }),
  ),
);
for (const params of [
  { offset: -1 },
  { offset: 1.5 },
  { offset: 2 ** 60 },
  { maxBytes: 0.5 },
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
  { content: "half \ud83d" },
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
(existsSync("/proc/self") ? write : write.skip)("refuses at once to make directories where there can be none", () =>
  withDirectory(async (_, call) => {
    const failure = await failureOf(call("write", { path: "/proc/no/such/f", content: "x", createDirs: true }));
    assert.is(failure.message, 'Cannot write "/proc/no/such/f": no such file or directory (ENOENT)');
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
write("never shows a part: a reader sees the old or the new", () =>
  withDirectory(async (directory, call) => {
    const contents = ["a".repeat(1 << 20), "b".repeat(1 << 20)];
    writeFileSync(join(directory, "f"), contents[0]!);
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
const mayMount = canMount();
(mayMount ? write : write.skip)("removes its temporary file when the disk is full", () =>
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
(mayMount ? write : write.skip)("says of directories that they cannot be made on a read-only file system", () =>
  withDirectory(async (directory, call) => {
    execFileSync("mount", ["-t", "tmpfs", "-o", "ro", "none", directory]);
    try {
      const failure = await failureOf(call("write", { path: "a/b/f", content: "x", createDirs: true }));
      assert.is(failure.message, `Cannot write "${directory}/a/b/f": read-only file system (EROFS)`);
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

const equal = suite("files.write keeps who may read and write a file,");

/** Whoever writes: user, group, other groups. */
type Who = [uid: number, gid: number, groups: number[]];
const ann: Who = [5001, 5001, [5001, 6000]];

/** Runs something as another user, in all threads of this process. */
async function as<T>([uid, gid, groups]: Who, action: () => Promise<T>): Promise<T> {
  process.setgroups!(groups);
  process.setegid!(gid);
  process.seteuid!(uid);
  try {
    return await action();
  } finally {
    process.seteuid!(0);
    process.setegid!(0);
    process.setgroups!([0]);
  }
}

/** Sets or reads an extended attribute, in hex; undefined where that cannot be done here. */
function attribute(path: string, name: string, value?: string): string | undefined {
  const script = `import os,sys
if len(sys.argv) > 3: os.setxattr(sys.argv[1], sys.argv[2], bytes.fromhex(sys.argv[3]))
print(os.getxattr(sys.argv[1], sys.argv[2]).hex())`;
  const { status, stdout } = spawnSync("python3", ["-c", script, path, name, ...(value ? [value] : [])], {
    encoding: "utf8",
  });
  return status === 0 ? stdout.trim() : undefined;
}
const acl = [
  "02000000",
  "01000600ffffffff",
  "020006008b130000",
  "04000000ffffffff",
  "10000600ffffffff",
  "20000000ffffffff",
].join(""); // u::rw,u:5003:rw,g::-,m::rw,o::-
const aclName = "system.posix_acl_access";

/** A file's owner, group and mode; its directory's; who writes; whether that is in place. */
const owners: [
  what: string,
  file: [number, number, number],
  directory: [number, number],
  who: Who,
  inPlace: boolean,
][] = [
  ["of another owner, through a group of ours", [5002, 6000, 0o660], [0, 0o777], ann, true],
  ["of another owner that anybody may write", [5002, 5002, 0o666], [0, 0o777], ann, true],
  ["of ours with a group of ours", [5001, 6000, 0o660], [0, 0o777], ann, false],
  ["of ours with a group that we may not give", [5001, 7000, 0o664], [0, 0o777], ann, true],
  ["of another, by root", [5002, 6000, 0o640], [0, 0o755], [0, 0, [0]], false],
  ["of ours in a directory that we may not write", [5001, 5001, 0o600], [0, 0o755], ann, true],
  ["of another in a sticky directory", [5002, 5002, 0o666], [0, 0o1777], ann, true],
  ["set-group-id, of ours", [5001, 6000, 0o2755], [0, 0o777], ann, false],
];
const onlyRoot = isRoot ? equal : equal.skip;
for (const [what, [uid, gid, mode], [owner, directoryMode], who, inPlace] of owners) {
  onlyRoot(what, () =>
    withDirectory(async (directory, call) => {
      const path = join(directory, "f");
      writeFileSync(path, "old content, longer");
      execFileSync("chown", [`${uid}:${gid}`, path]);
      execFileSync("chown", [String(owner), directory]);
      chmodSync(path, mode);
      chmodSync(directory, directoryMode);
      const before = statSync(path);
      const answer = await as(who, () => call("write", { path, content: "new" }));
      const after = statSync(path);
      assert.equal(answer, { written: 3, ...(inPlace ? { inPlace } : {}) });
      assert.equal([after.uid, after.gid, after.mode & 0o7777], [uid, gid, mode]);
      assert.equal([after.ino === before.ino, readFileSync(path, "utf8"), namesIn(directory)], [inPlace, "new", ["f"]]);
    }),
  );
}

const hasAcl = (() => {
  const path = join(mkdtempSync(join(tmpdir(), "holdfast-files-")), "f");
  writeFileSync(path, "");
  return attribute(path, aclName, acl) === acl;
})();
const onlyWithAcl = hasAcl ? equal : equal.skip;
for (const [what, path, inPlace] of [
  ["by the cp of GNU", process.env.PATH!, spawnSync("cp", ["--version"]).status !== 0],
  ["in place, where there is no cp", "/nowhere", true],
] as const) {
  onlyWithAcl(`its ACL and its attributes, ${what}`, () =>
    withDirectory(async (directory, call) => {
      const file = join(directory, "f");
      writeFileSync(file, "old", { mode: 0o600 });
      attribute(file, aclName, acl);
      const user = attribute(file, "user.holdfast", "616263");
      const { PATH } = process.env;
      process.env.PATH = path;
      const answer = await call("write", { path: file, content: "new" }).finally(() => (process.env.PATH = PATH));
      assert.equal(answer, { written: 3, ...(inPlace ? { inPlace } : {}) });
      assert.equal([attribute(file, aclName), attribute(file, "user.holdfast")], [acl, user]);
      assert.equal([readFileSync(file, "utf8"), statSync(file).mode & 0o777], ["new", 0o660]);
    }),
  );
}
equal("under each of its names", () =>
  withDirectory(async (directory, call) => {
    const [path, other] = [join(directory, "f"), join(directory, "other")];
    writeFileSync(path, "old content");
    linkSync(path, other);
    assert.equal(await call("write", { path, content: "new" }), { written: 3, inPlace: true });
    assert.is(readFileSync(other, "utf8"), "new");
  }),
);
(mayMount ? equal : equal.skip)("and its content, where there is no room for the new one", () =>
  withDirectory(async (directory, call) => {
    execFileSync("mount", ["-t", "tmpfs", "-o", "size=64k", "none", directory]);
    try {
      writeFileSync(join(directory, "f"), "old");
      linkSync(join(directory, "f"), join(directory, "other"));
      const failure = await failureOf(call("write", { path: "f", content: "x".repeat(1 << 20) }));
      assert.is(failure.message, `Cannot write "${directory}/f": no space left on device (ENOSPC)`);
      assert.is(readFileSync(join(directory, "other"), "utf8"), "old");
    } finally {
      execFileSync("umount", [directory]);
    }
  }),
);
(mayMount ? equal : equal.skip)("where it is a mount point", () =>
  withDirectory(async (directory, call) => {
    const [path, under] = [join(directory, "f"), join(directory, "under")];
    writeFileSync(path, "");
    writeFileSync(under, "old content");
    execFileSync("mount", ["--bind", under, path]);
    try {
      assert.equal(await call("write", { path, content: "new" }), { written: 3, inPlace: true });
      assert.equal([readFileSync(under, "utf8"), namesIn(directory)], ["new", ["f", "under"]]);
    } finally {
      execFileSync("umount", [path]);
    }
  }),
);
(existsSync("/proc/self/comm") ? equal : equal.skip)("in /proc", () =>
  withDirectory(async (_, call) => {
    const path = `/proc/${process.pid}/comm`;
    assert.equal(await call("write", { path, content: "written" }), { written: 7, inPlace: true });
    assert.is(readFileSync(path, "utf8"), "written\n");
  }),
);
onlyRoot("and not through a link that another has planted", () =>
  withDirectory(async (directory, call) => {
    const [ours, link] = [join(directory, "ours"), join(directory, "link")];
    chmodSync(directory, 0o1777);
    writeFileSync(ours, "ours");
    execFileSync("chown", ["5001", ours]);
    symlinkSync("ours", link);
    execFileSync("chown", ["-h", "5002", link]);
    const failure = await as(ann, () => failureOf(call("write", { path: link, content: "x" })));
    assert.match(
      failure.message,
      /it is a link of user 5002 in a directory that anybody may write to, it must be ours$/,
    );
    assert.is(readFileSync(ours, "utf8"), "ours");
    execFileSync("chown", ["-h", "5001", link]);
    assert.is((await as(ann, () => call("write", { path: link, content: "x" }))).written, 1);
  }),
);
onlyRoot("also while it writes: nobody can read the new content that could not read the old", () =>
  withDirectory(async (directory, call) => {
    const path = join(directory, "f");
    writeFileSync(path, "");
    execFileSync("chown", ["5002:6000", path]);
    chmodSync(path, 0o660);
    chmodSync(directory, 0o777);
    const wide: string[] = [];
    let isOver = false;
    const looking = (async () => {
      for (; !isOver; await new Promise((done) => setImmediate(done)))
        for (const name of namesIn(directory)) {
          const found = lstatSync(join(directory, name), { throwIfNoEntry: false });
          if (found && name !== "f" && (found.mode & 0o077) !== 0 && found.gid !== 6000) wide.push(name);
        }
    })();
    for (let i = 0; i < 20; i++) await call("write", { path, content: "x".repeat(100_000) });
    isOver = true;
    await looking;
    assert.equal(wide, []);
  }),
);
equal.run();

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
