/**
 * Makes a release, and publishes nothing: `npm run release -- VERSION [--dry-run]`
 *
 *     1  the tree is clean, CHANGELOG.md has a section of VERSION, and no tag is named so
 *     2  in a clone of its own: npm ci, the version, types and lint, two builds that are the same bytes, the package, installed and run
 *     3  release/VERSION/: holdfast.js, its hash, the tarball, the notes
 *     4  here: the version is committed and tagged. With --dry-run it is not
 */

import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

const root = fileURLToPath(new URL("..", import.meta.url));
const { values: options, positionals } = parseArgs({
  options: { "dry-run": { type: "boolean" } },
  allowPositionals: true,
});
const [version] = positionals;
if (!/^\d+\.\d+\.\d+$/.test(version ?? "")) fail("a version is needed, such as 0.2.0", 64);
if (run(root, "git", ["status", "--porcelain"]) !== "") fail("the tree is not clean: commit or stash first");
const notes = notesOf(version);
if (run(root, "git", ["tag", "--list", `v${version}`]) !== "")
  fail(`v${version} is tagged already; to make it anew: git tag -d v${version}`);

const directory = mkdtempSync(join(tmpdir(), "holdfast-release-"));
process.once("exit", () => rmSync(directory, { recursive: true, force: true }));
const clone = join(directory, "clone");
run(root, "git", ["clone", "--quiet", root, clone]);
console.log(`in ${clone}: npm ci …`);
run(clone, "npm", ["ci", "--no-audit", "--no-fund", "--prefer-offline"]);
setVersion(clone);
console.log("types, format and lint …");
run(clone, "npm", ["run", "check"]);
const hash = buildTwice(clone);
const tarball = pack(clone);
tryPackage(clone, tarball);
const place = join(root, "release", version);
mkdirSync(place, { recursive: true });
for (const file of ["dist/holdfast.js", "dist/holdfast.js.sha256", tarball])
  cpSync(join(clone, file), join(place, file.replace("dist/", "")));
writeFileSync(join(place, "notes.md"), `# holdfast ${version}\n\n${notes}\n\nSHA-256 of holdfast.js: \`${hash}\`\n`);
if (!options["dry-run"]) commit();
console.log(`release/${version}: holdfast.js (${hash}), ${tarball}, notes.md. Nothing was published.`);

/** The section of CHANGELOG.md. */
function notesOf(wanted) {
  const sections = readFileSync(join(root, "CHANGELOG.md"), "utf8").split(/^## /m);
  const found = sections
    .find((section) => section.startsWith(`${wanted}\n`))
    ?.slice(wanted.length)
    .trim();
  return found || fail(`CHANGELOG.md has no section "## ${wanted}", or nothing in it`);
}

function setVersion(place) {
  run(place, "npm", ["version", "--no-git-tag-version", "--allow-same-version", version]);
}

/** @returns The hash of the file. */
function buildTwice(clone) {
  console.log("two builds …");
  const hashes = [1, 2].map(() => {
    rmSync(join(clone, "dist"), { recursive: true, force: true });
    run(clone, process.execPath, ["build.mjs", "--quiet"]);
    return createHash("sha256")
      .update(readFileSync(join(clone, "dist/holdfast.js")))
      .digest("hex");
  });
  if (hashes[0] !== hashes[1]) fail(`two builds differ: ${hashes.join(" and ")}`);
  run(join(clone, "dist"), "sha256sum", ["--check", "--quiet", "holdfast.js.sha256"]);
  return hashes[0];
}

function pack(clone) {
  return JSON.parse(run(clone, "npm", ["pack", "--json", "--ignore-scripts"]))[0].filename;
}

/** Installed from the tarball, it says its version as a program, and exports as a library. */
function tryPackage(clone, tarball) {
  console.log("the package, installed …");
  const project = join(directory, "project");
  mkdirSync(project);
  writeFileSync(join(project, "package.json"), '{"type":"module"}');
  run(project, "npm", ["install", "--offline", "--no-audit", "--no-fund", join(clone, tarball)]);
  const said = run(project, "node_modules/.bin/holdfast", ["--version"]);
  if (!said.includes(version)) fail(`the package says that it is "${said.trim()}"`);
  const script = 'import { connect, serve } from "holdfast"; if (!connect || !serve) process.exit(1)';
  run(project, process.execPath, ["--input-type=module", "-e", script]);
}

function commit() {
  setVersion(root);
  run(root, "git", ["add", "package.json", "package-lock.json"]);
  if (run(root, "git", ["diff", "--cached", "--name-only"]) !== "")
    run(root, "git", ["commit", "--quiet", "-m", `release: ${version}`]);
  run(root, "git", ["tag", "-a", `v${version}`, "-m", `holdfast ${version}`]);
}

function run(cwd, command, args) {
  const { status, stdout, stderr, error } = spawnSync(command, args, { cwd, encoding: "utf8" });
  if (status !== 0) fail(`${command} ${args.join(" ")}: ${error?.message ?? `${stdout}${stderr}`.trim().slice(-2000)}`);
  return stdout;
}

/** What has been made in the temporary directory goes as the process ends. */
function fail(why, code = 1) {
  console.error(`error: Cannot make a release: ${why}`);
  process.exit(code);
}
