// time limit: 300 s; long
/** The package as an application takes it: compiled against, run by each runtime, bundled, judged by the tools for that, and the single file, copied. */

import type { SpawnSyncOptions } from "node:child_process";
import { spawnSync } from "node:child_process";
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { homedir, tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { build } from "esbuild";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { holdfast, runsAll } from "./daemon.ts";

const directory = mkdtempSync(join(tmpdir(), "holdfast-library-"));
process.once("exit", () => rmSync(directory, { recursive: true, force: true }));

function run(command: string[], options: SpawnSyncOptions = {}): string {
  const { status, stdout, stderr } = spawnSync(command[0]!, command.slice(1), {
    encoding: "utf8",
    cwd: directory,
    timeout: 60_000,
    ...options,
  });
  if (status !== 0) throw new Error(`${command.join(" ")}: exit code ${status}: ${stdout}${stderr}`);
  return String(stdout);
}

/** The package, packed from a copy, since another test may be building; and installed in a project of its own. */
function installPackage(): { tarball: string; project: string } {
  const copy = join(directory, "copy");
  mkdirSync(join(copy, "dist"), { recursive: true });
  for (const name of ["package.json", "LICENSE", "README.md"]) copyFileSync(name, join(copy, name));
  for (const name of readdirSync("dist").filter((name) => !name.startsWith(".")))
    copyFileSync(join("dist", name), join(copy, "dist", name));
  const packed = run(["npm", "pack", "--json", "--ignore-scripts", "--pack-destination", directory], { cwd: copy });
  const tarball = join(directory, JSON.parse(packed)[0].filename);
  const project = join(directory, "project");
  mkdirSync(project);
  writeFileSync(join(project, "package.json"), '{ "type": "module" }');
  run(["npm", "install", "--offline", "--no-audit", "--no-fund", tarball], { cwd: project });
  mkdirSync(join(project, "node_modules/@types"));
  for (const name of ["@types/node", "undici-types"])
    symlinkSync(resolve("node_modules", name), join(project, "node_modules", name));
  return { tarball, project };
}

const { tarball, project } = installPackage();
let runs = 0;

/** Runs an application, with a daemon of its own. */
function runApp(command: string[], program?: string): void {
  const socket = join(directory, `${++runs}.sock`);
  const words = run([...command, socket, ...(program === undefined ? [] : [program])]);
  assert.is(words, "all well\n");
}

/** The runtimes of the matrix that are installed, and the node that runs this. */
function runtimes(): [string, string[]][] {
  const cache =
    process.env.HOLDFAST_RUNTIMES ?? join(process.env.XDG_CACHE_HOME || join(homedir(), ".cache"), "holdfast/runtimes");
  const homes = existsSync(cache) ? readdirSync(cache).map((name) => join(cache, name, "node_modules")) : [];
  const modules = homes.find((path) => existsSync(join(path, "node24")));
  const found = [18, 20, 22, 24, 26].map((version): [string, string[]] => [
    `node ${version}`,
    [join(modules ?? "", `node${version}/bin/node`)],
  ]);
  const deno = join(modules ?? "", "@deno/linux-x64-glibc/deno");
  const bun = join(modules ?? "", "@oven/bun-linux-x64/bin/bun");
  const all: [string, string[]][] = [...found, ["deno", [deno, "run", "--allow-all"]], ["bun", [bun]]];
  return [["this node", [process.execPath]], ...all.filter(([, [path]]) => modules && existsSync(path!))];
}

const bundled = resolve("tests/bundles/app.ts");
const compiled = { mts: join(project, "app.mts"), cts: join(project, "app.cts") };
for (const path of Object.values(compiled)) copyFileSync(bundled, path);

const types = suite("an application in strict TypeScript");

types("compiles against the types, as ES module and as CommonJS, without skipLibCheck", () => {
  const flags =
    "--strict --exactOptionalPropertyTypes --noUncheckedIndexedAccess --noImplicitOverride --module nodenext --target es2022 --types node";
  const tsc = resolve("node_modules/typescript/bin/tsc");
  run([process.execPath, tsc, "--ignoreConfig", ...flags.split(" "), ...Object.values(compiled)], { cwd: project });
});

/** On CI all of them; elsewhere the oldest node, and what is none. */
const isWanted = (name: string): boolean =>
  process.env.CI === "true" || runsAll || ["this node", "node 18", "deno"].includes(name);

for (const [name, command] of runtimes().filter(([name]) => isWanted(name))) {
  types(`runs on ${name}, as ES module and as CommonJS`, () => {
    for (const file of ["app.mjs", "app.cjs"]) runApp([...command, join(project, file)]);
  });
}

types("takes the single file that was copied: required, imported, and with its types", () => {
  const copied = join(directory, "copied");
  mkdirSync(copied);
  writeFileSync(join(copied, "package.json"), '{ "type": "module" }');
  copyFileSync("dist/holdfast.js", join(copied, "holdfast.cjs"));
  copyFileSync("dist/index.d.cts", join(copied, "holdfast.d.cts"));
  mkdirSync(join(copied, "node_modules/@types"), { recursive: true });
  for (const name of ["@types/node", "undici-types"])
    symlinkSync(resolve("node_modules", name), join(copied, "node_modules", name));
  const text = readFileSync(bundled, "utf8").replaceAll('from "holdfast"', 'from "./holdfast.cjs"');
  writeFileSync(join(copied, "app.mts"), text);
  const flags = "--ignoreConfig --strict --module nodenext --target es2022 --types node app.mts";
  run([process.execPath, resolve("node_modules/typescript/bin/tsc"), ...flags.split(" ")], { cwd: copied });
  runApp([process.execPath, join(copied, "app.mjs")]);
  // where all is CommonJS, by the name it has
  writeFileSync(join(copied, "package.json"), "{}");
  copyFileSync("dist/holdfast.js", join(copied, "holdfast.js"));
  const words = run([process.execPath, "-p", 'typeof require("./holdfast.js").connect'], { cwd: copied });
  assert.is(words, "function\n");
});

types.run();

const bundles = suite("a bundled application");
const program = join(project, "node_modules/holdfast/dist/holdfast.js");
const bun = runtimes().find(([name]) => name === "bun")?.[1][0];
const tools = spawnSync(process.execPath, ["tests/bundles/install.mjs"], { encoding: "utf8" });
const modules = tools.status === 0 ? join(tools.stdout.trim(), "node_modules") : undefined;
const withTools = modules || process.env.CI === "true" ? bundles : bundles.skip;
const withBun = bun ? bundles : bundles.skip;

/** Runs the bundle by node, and by bun where there is one; also with holdfast.js beside it; and it has become nothing else. */
async function tryBundle(path: string): Promise<void> {
  const alone = spawnSync(process.execPath, [path, join(directory, `${++runs}.sock`)], {
    encoding: "utf8",
    cwd: directory,
  });
  assert.is(alone.status, 1);
  assert.match(alone.stderr, /Cannot find holdfast\.js at .*: there is no such file/);
  assert.match(alone.stderr, /name it with `program`/);
  for (const command of [[process.execPath], ...(bun ? [[bun]] : [])]) runApp([...command, path], program);
  copyFileSync(program, join(path, "../holdfast.js"));
  runApp([process.execPath, path]);
  assert.match((await holdfast(["--version"])).stdout.toString(), /^holdfast /);
}

const place = (name: string): string => {
  mkdirSync(join(directory, name));
  writeFileSync(join(directory, name, "package.json"), '{ "type": "commonjs" }');
  return join(directory, name);
};

for (const format of ["esm", "cjs"] as const) {
  bundles(`by esbuild, as ${format}`, async () => {
    const outfile = join(place(`esbuild-${format}`), format === "esm" ? "app.mjs" : "app.cjs");
    const options = { bundle: true, platform: "node", format, outfile, logLevel: "error", minify: true } as const;
    await build({ ...options, entryPoints: [compiled.mts], absWorkingDir: project });
    await tryBundle(outfile);
  });

  withTools(`by rollup, as ${format}`, async () => {
    const out = join(place(`rollup-${format}`), format === "esm" ? "app.mjs" : "app.cjs");
    const entry = join(project, "node_modules/holdfast/dist/index.mjs");
    const config = join(directory, `rollup-${format}.mjs`);
    const resolving = `{ resolveId: (id) => id === "holdfast" ? ${JSON.stringify(entry)} : null }`;
    const options = `{ input: ${JSON.stringify(join(project, "app.mjs"))}, external: [/^node:/], plugins: [${resolving}], output: { file: ${JSON.stringify(out)}, format: "${format}" } }`;
    writeFileSync(config, `export default ${options};`);
    run([process.execPath, join(modules!, "rollup/dist/bin/rollup"), "-c", config], {
      cwd: project,
    });
    await tryBundle(out);
  });

  withBun(`by bun, as ${format}`, async () => {
    const out = join(place(`bun-${format}`), format === "esm" ? "app.mjs" : "app.cjs");
    run([bun!, "build", compiled.mts, "--target=node", `--format=${format}`, `--outfile=${out}`], { cwd: project });
    if (format === "esm") await tryBundle(out);
    else runApp([process.execPath, out], program); // import.meta.url is then the path that the library had as it was bundled
  });
}

bundles("has only what it uses: an error's class is small, connect() starts no daemon", async () => {
  const bundle = async (contents: string): Promise<string> => {
    const stdin = { contents, resolveDir: project };
    const options = { bundle: true, platform: "node", format: "esm", write: false, logLevel: "error" } as const;
    return (await build({ ...options, stdin })).outputFiles[0]!.text;
  };
  const [none, error, connecting, all] = [
    await bundle('import "holdfast"; console.log(1)'),
    await bundle('import { HoldfastError } from "holdfast"; console.log(HoldfastError)'),
    await bundle('import { connect } from "holdfast"; console.log(connect)'),
    await bundle('import * as all from "holdfast"; console.log(all)'),
  ];
  assert.ok(none.length < 5000, none); // constants

  assert.ok(error.length < 6000, `${error.length} bytes`);
  assert.ok(connecting.length < all.length * 0.6, `${connecting.length} bytes of ${all.length}`);
  assert.not.match(connecting, /systemd-run/);
});

withTools("publint and attw find nothing in the package", () => {
  const publint = run([process.execPath, join(modules!, "publint/src/cli.js"), tarball, "--strict"]);
  assert.match(publint, /All good!/);
  const profile = ["--profile", "node16"]; // before that, resolution knew no exports; Node 18 is needed
  const attw = join(modules!, "@arethetypeswrong/cli/dist/index.js");
  run([process.execPath, attw, tarball, "--no-color", "--no-emoji", ...profile], {
    env: { ...process.env, NO_COLOR: "1" },
  });
});

bundles.run();
