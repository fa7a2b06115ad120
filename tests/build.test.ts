// time limit: 240 s
/** The built file and the package: what is in them, what is not, and that both can be made again. */

import { spawn, spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import {
  chmodSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { build } from "esbuild";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { builtFile, holdfast, outcomeOf, request } from "./daemon.ts";
import type { Outcome } from "./daemon.ts";

/** With all names whole: not minified. */
const maxBytes = 150_000;
const text = readFileSync(builtFile, "utf8");

async function withDirectory(use: (directory: string) => Promise<void>): Promise<void> {
  const directory = mkdtempSync(join(tmpdir(), "holdfast-build-"));
  try {
    await use(directory);
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

const run = (
  program: string,
  args: string[],
  { stdin = "" as string | Buffer, env = {} as NodeJS.ProcessEnv, cwd = "/" } = {},
): Promise<Outcome> => outcomeOf(spawn(program, args, { env: { ...process.env, ...env }, cwd }), stdin, 120_000);

// What is in it

const built = suite("the built file");

built(`has at most ${maxBytes / 1000} kB`, () => {
  assert.ok(statSync(builtFile).size <= maxBytes, `it has ${statSync(builtFile).size} bytes`);
});

built("requires and imports nothing but modules of Node", () => {
  const named = [...text.matchAll(/\b(?:require|import)\s*\(\s*([^)]*)\)/g)].map((match) => match[1]!);
  assert.ok(named.length > 10);
  for (const module of named) assert.match(module, /^"node:[a-z_/]+"$/);
  assert.not.match(text, /^\s*(import|export)\b/m);
  const modules = [...new Set(named.map((module) => module.slice(6, -1)))].sort();
  assert.equal(modules, [
    "buffer",
    "child_process",
    "crypto",
    "fs",
    "fs/promises",
    "module",
    "net",
    "os",
    "path",
    "stream",
    "url",
    "util",
    "vm",
  ]);
});

built("evaluates no text but its own, and has no way to the network but node:net", () => {
  for (const pattern of [
    /\beval\s*\(/,
    /\bnew Function\b/,
    /\bFunction\s*\(/,
    /\bfetch\s*\(/,
    /WebSocket/,
    /XMLHttpRequest/,
    /node:(https?|http2|tls|dgram|dns|inspector|worker_threads)/,
    /https?:\/\//,
  ]) {
    assert.not.match(text, pattern);
  }
  // once: a part of the function that holds all of it
  assert.equal(
    [...text.matchAll(/new\(require\("node:vm"\)\).*?,|node:vm/g)].map(([found]) => found),
    ['new(require("node:vm")).Script(text.slice(start,'],
  );
  assert.match(text, /\bconst text=holdfast\.toString\(\),/);
  assert.not.match(text, /runInThisContext(?!\(\)\})|runInNewContext|runInContext|compileFunction/);
  // node:net is there for Unix sockets: no port is listened on, and no host connected to
  assert.not.match(text, /\b(?:listen|connect\w*|createConnection)\((?:\d|\{[^}]*\b(?:host|port)\b)/);
});

built("loads no more than a mode needs", async () => {
  const trace = `const { Module } = require("node:module"); const load = Module._load; const seen = new Set();
    Module._load = function (name) { if (name.startsWith("node:")) seen.add(name.slice(5)); return load.apply(this, arguments); };
    process.on("exit", () => require("node:fs").writeSync(2, "loaded " + [...seen].sort().join(" ") + "\\n"));`;
  await withDirectory(async (directory) => {
    const preload = join(directory, "trace.cjs");
    writeFileSync(preload, trace);
    const loaded = async (args: string[], stdin = ""): Promise<string> =>
      /^loaded (.*)$/m.exec((await run(process.execPath, ["-r", preload, builtFile, ...args], { stdin })).stderr)![1]!;
    const versionNeeds = (await loaded(["--version"])).split(" ");
    assert.equal(versionNeeds, ["buffer", "fs", "path", "vm"]); // which node itself has loaded
    const socket = join(directory, "s");
    await holdfast(["--serve", "--socket", socket]);
    const bridgeNeeds = (
      await loaded(["--bridge", "--socket", socket], `${JSON.stringify(request("server.ping"))}\n`)
    ).split(" ");
    await holdfast(["--stop", "--now", "--socket", socket]);
    assert.equal(
      bridgeNeeds.filter((name) => ["child_process", "fs/promises", "stream", "url"].includes(name)),
      [],
    );
  });
});

built("carries its version and its hash, which anybody can check", async () => {
  const { stdout } = await holdfast(["--version", "--json"]);
  const { version, sha256 } = JSON.parse(stdout.toString());
  assert.is(version, JSON.parse(readFileSync("package.json", "utf8")).version);
  assert.is(text.split(sha256).length, 2, "it stands in the file once");
  assert.is(
    createHash("sha256")
      .update(text.replace(sha256, "0".repeat(64)))
      .digest("hex"),
    sha256,
  );
});

built("is built again byte by byte, by any directory", async () => {
  await withDirectory(async (directory) => {
    const built = ["one", "two"].map((name) => {
      const out = join(directory, name);
      assert.is(
        spawnSync(process.execPath, [resolve("build.mjs"), "--quiet", "--out", out], { cwd: directory }).status,
        0,
      );
      return Object.fromEntries(readdirSync(out).map((file) => [file, readFileSync(join(out, file), "utf8")]));
    });
    assert.equal(Object.keys(built[0]!).sort(), ["holdfast.d.ts", "holdfast.js", "package.json"]);
    assert.equal(built[0], built[1]);
  });
});

// How it is run

const running = suite("the file, run");

running(
  "is executed by the first runtime that is there: node, nodejs, bun, deno; and says so where there is none",
  async () => {
    await withDirectory(async (directory) => {
      for (const name of ["deno", "bun", "nodejs", "node", "none"]) {
        const path = join(directory, name);
        mkdirSync(path);
        symlinkSync("/bin/sh", join(path, "sh"));
        const script =
          name === "deno"
            ? `#!/bin/sh\n[ "$1 $2" = "run --allow-all" ] && shift 2 && exec ${process.execPath} "$@"\n`
            : `#!/bin/sh\nexec ${process.execPath} "$@"\n`;
        if (name !== "none") writeFileSync(join(path, name), script, { mode: 0o755 });
        const { code, stdout, stderr } = await run(builtFile, ["--call", "a b", "{"], { env: { PATH: path } });
        if (name === "none") {
          assert.is(code, 127);
          assert.is(stderr, "holdfast: error: Cannot run: there is no node, nodejs, bun or deno on the PATH\n");
        } else {
          assert.is(code, 64, `${name}: ${stdout}${stderr}`);
          assert.match(stderr, /^holdfast: error: Cannot read PARAMS/);
        }
      }
    });
  },
);

running("says in one line that it does not run on Windows, and on an old Node", async () => {
  await withDirectory(async (directory) => {
    for (const [fake, words] of [
      [
        `Object.defineProperty(process, "platform", { value: "win32" })`,
        /^holdfast: error: Cannot run on Windows: .*\n$/,
      ],
      [
        `Object.defineProperty(process, "versions", { value: { ...process.versions, node: "17.9.1" } })`,
        /^holdfast: error: Cannot run on Node 17\.9\.1: version 18 or later is needed\n$/,
      ],
    ] as const) {
      writeFileSync(join(directory, "fake.cjs"), fake);
      const { code, stdout, stderr } = await run(process.execPath, [
        "-r",
        join(directory, "fake.cjs"),
        builtFile,
        "--serve",
      ]);
      assert.equal([code, stdout.toString()], [1, ""]);
      assert.match(stderr, words);
    }
  });
});

running("can be written out with all its whitespace: it is the same program", async () => {
  await withDirectory(async (directory) => {
    const built = await run(process.execPath, ["build.mjs", "--quiet", "--readable", "--out", directory], {
      cwd: resolve("."),
    });
    assert.equal([built.code, built.stderr], [0, ""]);
    const program = join(directory, "holdfast.readable.js");
    assert.ok(readFileSync(program, "utf8").split("\n").length > 3000);
    const say = async (mode: string, ...args: string[]) =>
      (await run(process.execPath, [program, mode, ...args, "--socket", join(directory, "s")])).stdout.toString();
    assert.match(await say("--serve"), /^Remote server listening on /);
    assert.is(await say("--call", "server.ping"), '{"pong":true}\n');
    assert.is(await say("--stop", "--now"), "stopped 0\n");
  });
});

running("serves from a read-only, noexec file system", async () => {
  if (process.getuid?.() !== 0) return void console.log("SKIP 1 mounting needs root");
  await withDirectory(async (directory) => {
    const mount = join(directory, "mnt");
    mkdirSync(mount);
    const script = `mount -t tmpfs -o noexec tmpfs '${mount}' && cp '${builtFile}' '${mount}/server' && mount -o remount,ro,noexec '${mount}' && ! '${mount}/server' --version 2>/dev/null &&
      node='${process.execPath}'; "$node" '${mount}/server' --serve --socket '${directory}/s' && "$node" '${mount}/server' --call server.ping --socket '${directory}/s' && "$node" '${mount}/server' --stop --now --socket '${directory}/s'`;
    const { code, stdout, stderr } = await run("unshare", ["-m", "sh", "-c", script]);
    assert.is(code, 0, stderr);
    assert.match(stdout.toString(), /^Remote server listening on .*\n\{"pong":true\}\nstopped 0\n$/);
  });
});

running("serves when it came through a pipe that cannot be read again", async () => {
  await withDirectory(async (directory) => {
    const socket = join(directory, "s");
    for (const command of [
      `node - --serve --socket "$1" < "$2"`,
      `cat "$2" | node - --serve --socket "$1"`,
      `node --input-type=module - --serve --socket "$1" < "$2"`,
    ]) {
      rmSync(join(directory, "holdfast.cjs"), { force: true });
      const started = await run("bash", ["-c", command, "bash", socket, builtFile], {
        env: { PATH: `${resolve(process.execPath, "..")}:${process.env.PATH}` },
      });
      assert.is(started.code, 0, `${command}: ${started.stderr}`);
      assert.is(readFileSync(join(directory, "holdfast.cjs"), "utf8"), text.slice(text.indexOf("\n;(") + 1), command); // without the lines for a shell
      assert.is(statSync(join(directory, "holdfast.cjs")).mode & 0o777, 0o600);
      assert.is((await holdfast(["--call", "server.ping", "--socket", socket])).stdout.toString(), '{"pong":true}\n');
      assert.is((await holdfast(["--stop", "--now", "--socket", socket])).code, 0);
    }
  });
});

running("runs nothing when it is imported", async () => {
  await withDirectory(async (directory) => {
    for (const name of ["a.cjs", "b.mjs"]) copyFileSync(builtFile, join(directory, name));
    const code = `Promise.all([import("./a.cjs"), import("./b.mjs")]).then(([a, b]) => console.log(Object.keys(a).join(), Object.keys(b).join()))`;
    for (const args of [["-e", code], ["--input-type=module", "-e", code], ["-"]]) {
      const {
        code: exit,
        stdout,
        stderr,
      } = await run(process.execPath, args, { cwd: directory, stdin: args[0] === "-" ? code : "" });
      assert.equal([exit, stderr], [0, ""]);
      // an ES module without export syntax has no exports, and with it would be no CommonJS: imported it must be CommonJS
      assert.match(stdout.toString(), /^(__esModule,)?connect,default(,module\.exports)?,serve \n$/);
    }
  });
});

running("says what is wrong when it was bundled, which leaves comments out", async () => {
  await withDirectory(async (directory) => {
    const [app, out] = [join(directory, "app.cjs"), join(directory, "out.cjs")];
    writeFileSync(app, `require(${JSON.stringify(builtFile)});`);
    await build({ entryPoints: [app], outfile: out, bundle: true, platform: "node", logLevel: "error" });
    assert.match(
      (await run(process.execPath, [out])).stderr,
      /^Error: Cannot run holdfast: it was bundled or minified, and its program, a comment, is lost$/m,
    );
  });
});

// The package

const pack = suite("the package");

pack("holds the file, its types and what npm adds; installed, it is run by npx, required and imported", async () => {
  await withDirectory(async (directory) => {
    // of a copy: npm packs what stands in the tree, and another may be building there
    const copy = join(directory, "copy");
    mkdirSync(join(copy, "dist"), { recursive: true });
    for (const name of [
      "package.json",
      "LICENSE",
      "README.md",
      ...readdirSync("dist")
        .filter((name) => /^(holdfast\.(js|d\.ts)|package\.json)$/.test(name))
        .map((name) => `dist/${name}`),
    ]) {
      if (existsSync(name)) copyFileSync(name, join(copy, name));
    }
    const packed = await run("npm", ["pack", "--json", "--ignore-scripts", "--pack-destination", directory], {
      cwd: copy,
    });
    assert.is(packed.code, 0, packed.stderr);
    const [{ filename, files }] = JSON.parse(packed.stdout.toString());
    const names = files
      .map(({ path }: { path: string }) => path)
      .filter((path: string) => path !== "README.md")
      .sort();
    assert.equal(names, ["LICENSE", "dist/holdfast.d.ts", "dist/holdfast.js", "dist/package.json", "package.json"]);

    const project = join(directory, "project");
    mkdirSync(project);
    writeFileSync(join(project, "package.json"), '{"type":"module"}');
    const installed = await run("npm", ["install", "--offline", "--no-audit", "--no-fund", join(directory, filename)], {
      cwd: project,
    });
    assert.is(installed.code, 0, installed.stderr);
    const doctor = await run("npx", ["--no", "holdfast", "--doctor", "--json", "--socket", join(directory, "s")], {
      cwd: project,
    });
    assert.type(JSON.parse(doctor.stdout.toString()), "object");
    for (const args of [
      [
        "--input-type=module",
        "-e",
        'import { connect, serve } from "holdfast"; console.log(typeof connect, typeof serve)',
      ],
      [
        "--input-type=commonjs",
        "-e",
        'const { connect, serve } = require("holdfast"); console.log(typeof connect, typeof serve)',
      ],
    ]) {
      assert.is((await run(process.execPath, args, { cwd: project })).stdout.toString(), "function function\n");
    }
    // the types hold in both module types
    for (const extension of ["mts", "cts"]) {
      writeFileSync(
        join(project, `use.${extension}`),
        `
        import { connect, serve } from "holdfast";
        import type { Connection, RemoteProcess } from "holdfast";
        export async function use(): Promise<number | null> {
          const { socket } = await serve({ token: "t" });
          const there: Connection = await connect({ socket, token: "t" });
          const child: RemoteProcess = await there.spawn({ command: "true", onOutput: ({ data }) => void data.byteLength });
          return (await child.exit).exitCode;
        }`,
      );
      const checked = await run(
        process.execPath,
        [
          resolve("node_modules/typescript/bin/tsc"),
          "--ignoreConfig",
          "--noEmit",
          "--strict",
          "--module",
          "nodenext",
          "--target",
          "es2022",
          "--types",
          "node",
          "--typeRoots",
          resolve("node_modules/@types"),
          `use.${extension}`,
        ],
        { cwd: project },
      );
      assert.is(checked.code, 0, checked.stdout.toString());
    }
  });
});

chmodSync(builtFile, 0o755);
built.run();
running.run();
pack.run();
