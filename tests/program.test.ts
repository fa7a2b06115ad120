// time limit: 120 s
/** What V8 has compiled, kept beside the file: who keeps it, that it is used, and when it is not. What runs tells, by what it prints. */

import {
  chmodSync,
  chownSync,
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { builtFile, eventually, frameOf, isAlive, isRoot, request, withDirectory } from "./daemon.ts";
import type { Outcome, Site } from "./daemon.ts";

/** What a file of the cache begins with: five words of what it is of, and the length of the code that follows; padded. It ends with a byte that is not 0. */
const headBytes = 176;
const codeIn = (path: string): Buffer => readFileSync(path).subarray(headBytes, -1);
const text = readFileSync(builtFile, "utf8");
const modes = ["bridge", "call", "launched", "serve", "stop"];

interface Place {
  /** Of a copy of the built file, and where its compiled code belongs. */
  directory: string;
  program: string;
  cache: string;
  site: Site;
  run(args: string[], stdin?: string | Buffer): Promise<Outcome>;
  /** What --stop says where no daemon is: "none 0", by this program. */
  word(): Promise<string>;
}

function withPlace(use: (place: Place) => Promise<void>): Promise<void> {
  return withDirectory(async (site) => {
    const directory = join(site.directory, "program");
    const program = join(directory, "server");
    const run: Place["run"] = (args, stdin) => site.run(args, { file: program, stdin });
    const word = async (): Promise<string> => {
      const { code, stdout, stderr } = await run(["--stop"]);
      assert.equal([code, stderr], [0, ""]);
      return stdout.toString();
    };
    mkdirSync(directory);
    writeFileSync(program, text);
    await use({ directory, program, cache: join(directory, ".server.cache"), site, run, word });
  });
}

const wordsOf = (path: string): string[] => readFileSync(path, "latin1").slice(0, headBytes).trim().split(" ");
/** A file of the cache: of what `words` say, with some code. */
const keptFile = (words: string[], code: Buffer): Buffer =>
  Buffer.concat([Buffer.from([...words, code.length].join(" ").padEnd(headBytes)), code, Buffer.from(".")]);
const modeOf = (path: string): number => lstatSync(path).mode & 0o7777;

const kept = suite("keepCompiled()");

kept("keeps one file for each mode that is often started, which nobody else can read or write", async () => {
  await withPlace(async ({ directory, program, cache, site, run }) => {
    assert.is((await run(["--serve"])).code, 0);
    assert.is((await run(["--call", "server.ping"])).code, 0);
    const token = readFileSync(`${site.socket}.token`, "utf8").trim();
    assert.is((await run(["--bridge"], frameOf(request("server.ping", {}, token)))).code, 0);
    assert.is((await run(["--status"])).code, 0);
    assert.equal(readdirSync(cache).sort(), ["bridge", "call", "serve"]); // the daemon's comes as it ends: to make it takes memory
    assert.is((await run(["--stop"])).code, 0);
    assert.equal(readdirSync(cache).sort(), modes);
    assert.equal(
      modes.map((mode) => modeOf(join(cache, mode))),
      modes.map(() => 0o600),
    );
    assert.is(modeOf(cache), 0o700);
    const [, sha256] = /\bsha256: "([0-9a-f]{64})"/.exec(text)!;
    const { size, mtimeMs } = statSync(process.execPath);
    for (const mode of modes)
      assert.equal(
        wordsOf(join(cache, mode)).slice(0, 5),
        [sha256, statSync(program).ctimeMs, process.version, size, mtimeMs].map(String),
        mode,
      );
    // none of it is made again
    const before = modes.map((mode) => lstatSync(join(cache, mode)).ino);
    await run(["--serve"]);
    await run(["--call", "server.ping"]);
    await run(["--bridge"], frameOf(request("server.ping", {}, token)));
    await run(["--stop"]);
    assert.equal(
      modes.map((mode) => lstatSync(join(cache, mode)).ino),
      before,
    );
    assert.equal(readdirSync(directory).sort(), [".server.cache", "server"]);
  });
});

kept("keeps nothing of a daemon that a signal ended: who sent it does not wait for a disk", async () => {
  await withPlace(async ({ cache, site, run }) => {
    assert.is((await run(["--serve"])).code, 0);
    const { pid } = site.record();
    process.kill(pid, "SIGTERM");
    await eventually(() => !isAlive(pid), "its end");
    assert.equal(readdirSync(cache), ["serve"]);
  });
});

kept("keeps nothing for a file that is another one by now, or that was read as an ES module", async () => {
  await withPlace(async ({ directory, program, cache, site, run }) => {
    assert.is((await run(["--serve"])).code, 0);
    rmSync(cache, { recursive: true });
    writeFileSync(program, "another version");
    assert.is((await site.run(["--stop"])).stdout.toString(), "stopped 0\n");
    assert.not.ok(existsSync(cache));
    const module = join(directory, "server.mjs");
    writeFileSync(module, text);
    const { code, stdout } = await site.run(["--stop"], { file: module });
    assert.equal([code, stdout.toString()], [0, "none 0\n"]);
    assert.equal(readdirSync(directory).sort(), ["server", "server.mjs"]);
  });
});

kept("keeps nothing of a file that is another user's, or stands where nothing can be made", async () => {
  await withPlace(async ({ directory, program, cache, word }) => {
    writeFileSync(cache, "a file");
    assert.is(await word(), "none 0\n");
    assert.is(readFileSync(cache, "utf8"), "a file");
    rmSync(cache);
    // planted: whoever did it would own the code
    const elsewhere = join(directory, "elsewhere");
    mkdirSync(elsewhere, { mode: 0o700 });
    symlinkSync(elsewhere, cache);
    assert.is(await word(), "none 0\n");
    assert.equal(readdirSync(elsewhere), []);
    rmSync(cache);
    if (!isRoot) return void console.log("SKIP 1 other users' files need root");
    chownSync(program, 65534, 65534);
    assert.is(await word(), "none 0\n");
    assert.not.ok(existsSync(cache));
    chownSync(program, 0, 0);
    mkdirSync(cache, { mode: 0o700 });
    chownSync(cache, 65534, 65534);
    assert.is(await word(), "none 0\n");
    assert.equal(readdirSync(cache), []);
  });
});

const used = suite("compiled code");

/** Puts in the place of this program's code that of another one, of the same length, which says "nine 0": so it shows which of them runs. */
async function plant({ program, cache, word }: Place): Promise<string> {
  const other = text.replaceAll('word:"none"', 'word:"nine"');
  assert.is.not(other, text);
  writeFileSync(program, other);
  assert.is(await word(), "nine 0\n");
  const path = join(cache, "stop");
  const code = codeIn(path);
  assert.is(wordsOf(path)[5], String(code.length));
  writeFileSync(program, text);
  assert.is(await word(), "none 0\n", "the file was changed: what was compiled of it before is not taken");
  writeFileSync(path, keptFile(wordsOf(path).slice(0, 5), code));
  return path;
}

used("is what runs, when it is there", async () => {
  await withPlace(async (place) => {
    await plant(place);
    assert.is(await place.word(), "nine 0\n");
    assert.is(await place.word(), "nine 0\n");
  });
});

used("is not taken from a directory that others may read or write, or that is another user's", async () => {
  await withPlace(async (place) => {
    await plant(place);
    for (const mode of [0o755, 0o770, 0o702]) {
      chmodSync(place.cache, mode);
      assert.is(await place.word(), "none 0\n", mode.toString(8));
    }
    chmodSync(place.cache, 0o700);
    assert.is(await place.word(), "nine 0\n");
    if (!isRoot) return void console.log("SKIP 1 other users' files need root");
    chownSync(place.cache, 65534, 65534);
    assert.is(await place.word(), "none 0\n");
  });
});

used("is not taken when the file, or node, is another one than it was; it is made anew", async () => {
  await withPlace(async (place) => {
    const path = await plant(place);
    const planted = codeIn(path);
    utimesSync(place.program, 1, 1); // the time of a change cannot be set
    assert.is(await place.word(), "none 0\n");
    const words = wordsOf(path);
    for (let at = 0; at < 5; at++) {
      writeFileSync(path, keptFile([...words.slice(0, at), "1", ...words.slice(at + 1, 5)], planted));
      assert.is(await place.word(), "none 0\n", `word ${at}`);
      assert.equal(wordsOf(path).slice(0, 5), words.slice(0, 5), `word ${at}: made anew`);
    }
  });
});

used("of a file that is imported is not taken: it stays what its importer has read", async () => {
  await withPlace(async ({ directory, program, site, run }) => {
    const use = join(directory, "use.cjs");
    writeFileSync(use, `console.log(Object.keys(require(${JSON.stringify(program)})).join(" "));`);
    await run(["--stop"]);
    const path = join(directory, ".server.cache/stop");
    const words = wordsOf(path).slice(0, 5);
    const other = text.replaceAll("connect:connect", "cannect:connect");
    assert.is.not(other, text);
    writeFileSync(program, other);
    await run(["--stop"]);
    const code = codeIn(path);
    writeFileSync(program, text);
    words[1] = String(statSync(program).ctimeMs);
    writeFileSync(path, keptFile(words, code));
    const { stdout } = await site.command([process.execPath, use, "--stop"]);
    assert.is(stdout.toString(), "connect serve\n");
  });
});

used("with a page that was lost is not taken", async () => {
  await withPlace(async (place) => {
    const path = await plant(place);
    const planted = readFileSync(path);
    const check = async (from: number, to = planted.length): Promise<void> => {
      writeFileSync(path, Buffer.from(planted).fill(0, from, Math.min(to, planted.length)));
      assert.is(await place.word(), "none 0\n", `zeros from ${from} to ${to}`);
    };
    for (const page of [4096, 1024]) for (let at = 0; at < planted.length; at += 4096) await check(at, at + page);
    // the last page may hold only a few bytes
    for (const left of [1, 2, 100, 400, 511]) await check(planted.length - left);
  });
});

used("that is cut off, or empty, is not taken; it is made anew", async () => {
  await withPlace(async (place) => {
    const path = await plant(place);
    const planted = readFileSync(path);
    for (const length of [0, 1, headBytes, headBytes + 1, headBytes + 40, planted.length >> 1, planted.length - 1]) {
      writeFileSync(path, planted.subarray(0, length));
      assert.is(await place.word(), "none 0\n", `${length} bytes`);
      assert.ok(lstatSync(path).size > planted.length >> 1, `${length} bytes: made anew`);
    }
  });
});

kept.run();
used.run();
