// time limit: 240 s; long
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
import { suite } from "uvu";
import * as assert from "uvu/assert";
import type { Outcome } from "./daemon.ts";
import { builtFile, canMount, eventually, hasProgram, holdfast, outcomeOf, request } from "./daemon.ts";

/** What an administrator can read: not minified. */
const maxBytes = 472_000;
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
  for (const module of named) assert.match(module, /^"node:[a-z0-9_/]+"$/);
  assert.not.match(text, /^\s*(import|export)\b/m);
  const modules = [...new Set(named.map((module) => module.slice(6, -1)))].sort();
  const known = "child_process crypto fs fs/promises inspector module net os path stream tty url util v8".split(" ");
  assert.equal(modules, known);
});

built("evaluates no text, hides none, and has no way to the network but node:net", () => {
  for (const pattern of [
    /\beval\s*\(/,
    /\bFunction\s*\(/,
    /node:vm|cachedData|_handle|_listen2|process\.binding|runIn\w*Context|compileFunction/,
    /\bfetch\s*\(|WebSocket|XMLHttpRequest|https?:\/\//,
    /node:(https?|http2|tls|dgram|dns|worker_threads)/,
    /inspector\.(open|waitForDebugger|Session)/, // one that somebody has opened is closed
  ]) {
    assert.not.match(text, pattern);
  }
  // node:net is there for Unix sockets: no port is listened on, and no host connected to
  assert.not.match(text, /\b(?:listen|connect\w*|createConnection)\((?:\d|\{[^}]*\b(?:host|port)\b)/);
});

built("reads like a source: lines of a length to read, the names of all functions, one module after the other", () => {
  const lines = text.split("\n");
  assert.ok(lines.length > 3500, `${lines.length} lines`);
  assert.ok(lines.filter((line) => line.length > 200).length < 40);
  for (const name of readdirSync(".").filter((file) => file.endsWith(".ts"))) {
    assert.ok(lines.includes(`// ${name}`), name);
    const functions = [...readFileSync(name, "utf8").matchAll(/^(?:export )?(?:async )?function (\w+)/gm)];
    for (const [, called] of functions)
      assert.match(text, new RegExp(`\\bfunction ${called}\\d*\\(`), `${name}: ${called}`);
  }
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

built("has its hash beside it, for sha256sum -c", async () => {
  const { code, stdout } = await run("sha256sum", ["-c", "holdfast.js.sha256"], { cwd: resolve("dist") });
  assert.equal([code, stdout.toString()], [0, "holdfast.js: OK\n"]);
});

(hasProgram("strace") ? built : built.skip)("writes no file but in the run directory", async () => {
  await withDirectory(async (directory) => {
    for (const name of ["program", "run"]) mkdirSync(join(directory, name), { mode: 0o700 });
    const [program, socket] = [join(directory, "program/server.js"), join(directory, "run/s")];
    copyFileSync(builtFile, program);
    const calls = "trace=openat,open,creat,mkdir,mkdirat,link,linkat,symlinkat,rename,renameat2";
    const trace = (name: string, args: string[], stdin = ""): Promise<Outcome> => {
      const options = ["-o", join(directory, name), "-f", "-qq", "-y", "-e", calls];
      return run("strace", [...options, process.execPath, program, ...args, "--socket", socket], { stdin });
    };
    const serving = trace("serve", ["--serve"]); // it ends with the daemon
    await eventually(() => existsSync(socket), "the socket");
    const token = readFileSync(`${socket}.token`, "utf8").trim();
    const outcomes = [
      await trace("bridge", ["--bridge"], `${JSON.stringify(request("server.ping", {}, token))}\n`),
      await trace("call", ["--call", "server.ping"]),
      await trace("status", ["--status"]),
      await trace("stop", ["--stop"]),
      await serving,
    ];
    for (const { code, stderr } of outcomes) assert.is(code, 0, stderr);
    const lines = ["serve", "bridge", "call", "status", "stop"].flatMap((name) =>
      readFileSync(join(directory, name), "utf8").split("\n"),
    );
    const written = lines
      .filter((line) => /O_(WRONLY|RDWR|CREAT)|mkdir|link|rename/.test(line) && !/ = -1 /.test(line))
      .flatMap((line) => [...line.matchAll(/"(\/[^"]*)"/g)].map((match) => match[1]!));
    assert.ok(written.length > 10);
    const outside = written.filter((path) => !path.startsWith(`${directory}/run/`) && !/^\/(dev|proc)\//.test(path));
    assert.equal(outside, []);
    assert.equal(readdirSync(join(directory, "program")), ["server.js"]);
  });
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
    const names =
      "holdfast.d.ts holdfast.js holdfast.js.sha256 index.cjs index.d.cts index.d.mts index.mjs package.json";
    assert.equal(Object.keys(built[0]!).sort(), names.split(" "));
    assert.equal(built[0], built[1]);
    assert.ok(built[0]!["holdfast.js"] === text, "nor do they depend on where it is built from");
  });
});

// How it is run

const running = suite("the file, run");

/** Where it looks besides PATH and a home, this machine has a runtime. */
const isAnywhere = ["/usr/local/bin", "/opt/homebrew/bin", "/snap/bin"].some((directory) =>
  ["node", "bun", "deno"].some((name) => existsSync(join(directory, name))),
);

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
        if (name === "none" && !isAnywhere) {
          assert.is(code, 127);
          assert.match(stderr, /^holdfast: error: Cannot run: there is no node, .*\nholdfast: hint: put a node .*\n$/);
        } else {
          assert.is(code, 64, `${name}: ${stdout}${stderr}`);
          assert.match(stderr, /^holdfast: error: Cannot read PARAMS/);
        }
      }
    });
  },
);

/** Versions above those that a machine may have in /usr/local/bin. */
const elsewhere: [string, Record<string, string>, string][] = [
  ["beside the file", { "bin/node": "v90.0.0", "path/node": "v91.0.0" }, "bin/node"],
  [
    "in PATH, before all others",
    { "path/node": "v20.0.0", ".nvm/versions/node/v99.0.0/bin/node": "v99.0.0" },
    "path/node",
  ],
  [
    "by nvm, where that in PATH is too old",
    { "path/node": "v17.9.1", ".nvm/versions/node/a/bin/node": "v90.0.0" },
    ".nvm/versions/node/a/bin/node",
  ],
  [
    "the newest, by number",
    {
      ".nvm/versions/node/a/bin/node": "v90.9.0",
      ".nvm/versions/node/b/bin/node": "v90.10.0",
      ".nvm/versions/node/c/bin/node": "v9.0.0",
    },
    ".nvm/versions/node/b/bin/node",
  ],
  [
    "by fnm",
    { ".local/share/fnm/node-versions/v90.0.0/installation/bin/node": "v90.0.0" },
    ".local/share/fnm/node-versions/v90.0.0/installation/bin/node",
  ],
  ["by volta", { ".volta/bin/node": "v90.0.0" }, ".volta/bin/node"],
  [
    "by mise",
    { ".local/share/mise/installs/node/90/bin/node": "v90.0.0" },
    ".local/share/mise/installs/node/90/bin/node",
  ],
  [
    "by asdf, and not one that does not run",
    { ".volta/bin/node": "", ".asdf/installs/nodejs/90/bin/node": "v90.0.0" },
    ".asdf/installs/nodejs/90/bin/node",
  ],
  ["bun in PATH, where node is too old", { "path/node": "v16.0.0", "path/bun": "" }, "path/bun"],
  ["too old and alone: it says so itself", { "path/node": "v16.0.0" }, "path/node"],
  ["bun at home", { ".bun/bin/bun": "" }, ".bun/bin/bun"],
  ["deno at home", { ".deno/bin/deno": "" }, ".deno/bin/deno"],
];

for (const shell of [["dash"], ["busybox", "sh"], ["bash", "--posix"]]) {
  const finds = hasProgram(shell[0]!) ? running : running.skip;
  finds(`finds a runtime by ${shell[0]} where an ssh command has none in PATH`, async () => {
    for (const [where, files, wanted] of elsewhere) {
      // a machine's own would be found before those
      if (/at home|alone/.test(where) && existsSync("/usr/local/bin/node")) continue;
      await withDirectory(async (directory) => {
        for (const [name, version] of Object.entries({ "bin/holdfast.js": "", ...files })) {
          mkdirSync(join(directory, name, ".."), { recursive: true });
          const script = `case $1 in --version) echo "${version}"; [ -n "${version}" ] ;; *) echo "$0" ;; esac`;
          if (name.endsWith(".js")) copyFileSync(builtFile, join(directory, name));
          else writeFileSync(join(directory, name), `#!/bin/sh\n${script}\n`, { mode: 0o755 });
        }
        const command = shell.map((word) => `/usr/bin/${word}`.replace(/.*\/(sh|--posix)$/, "$1"));
        const env = { HOME: directory, PATH: join(directory, "path") };
        const { stdout, stderr } = await run(
          command[0]!,
          [...command.slice(1), join(directory, "bin/holdfast.js"), "a b"],
          { env },
        );
        assert.is(stdout.toString(), `${join(directory, wanted)}\n`, `${where}: ${stderr}`);
      });
    }
  });
}

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

(canMount() ? running : running.skip)("serves from a read-only, noexec file system", async () => {
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
      assert.match(
        stdout.toString(),
        /^HoldfastError,(__esModule,)?connect,default,deploy(,module\.exports)?,serve \n$/,
      );
    }
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
        .filter((name) => /^((holdfast|index)\.(d\.)?[cm]?[jt]s|package\.json)$/.test(name))
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
    const built = "holdfast.d.ts holdfast.js index.cjs index.d.cts index.d.mts index.mjs package.json".split(" ");
    assert.equal(names, ["LICENSE", ...built.map((name) => `dist/${name}`), "package.json"]);

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
  });
});

chmodSync(builtFile, 0o755);
built.run();
running.run();
pack.run();
