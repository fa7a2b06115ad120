/**
 * The recording of README, docs/recording.svg: `node scripts/recording.mjs`
 *
 * What is seen is a real run on a booted host that kills what stays in a session, its user lingering: a command is run, the line is cut (the ssh client
 * is killed), nobody is logged in for 14 s, and the command is attached to again. Words in grey are ours, between the commands.
 *
 * The picture is one SVG without a script: each line appears when it did, by an animation of CSS; long pauses are cut. Where animations are
 * not wanted (prefers-reduced-motion) it is all there at once.
 */

import { writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { loadHosts } from "./hosts.mjs";

const columns = 92;
const [lineHeight, charWidth, left, top] = [18, 7.8, 16, 48];
/** Nothing happens for longer than this. */
const maxPauseMs = 1200;
/** The whole is seen for so long before it begins anew. */
const lingerMs = 6000;
const program = "./holdfast.js";
/** A build of half a minute, a line every 5 s. */
const makefile = `build: config.o parse.o table.o frame.o socket.o main.o app; @echo built.
%.o:; @echo "  CC  $@"; sleep 5
app:; @echo "  LD  $@"; sleep 5
.PHONY: build app
`;

process.chdir(fileURLToPath(new URL("..", import.meta.url)));
const hosts = await loadHosts();
if (typeof hosts === "string") {
  console.error(`error: Cannot record: ${hosts}`);
  process.exit(1);
}
const lines = await hosts.withHost({ users: ["dev+linger"], killUserProcesses: true }, async (host) => {
  await host.copy("dev", "dist/holdfast.js", "holdfast.js");
  await host.inside(["sh", "-c", 'printf %s "$1" >/home/dev/Makefile', "sh", makefile]);
  await host.ssh("dev", `${program} --serve`); // on a host that has been used before
  return record(host);
});
writeFileSync("docs/recording.svg", draw(lines));
console.log(lines.map(({ text }) => text).join("\n"));

/** @returns {Promise<{at: number, text: string, kind: "typed" | "said" | "ours"}[]>} */
async function record(host) {
  const begin = Date.now();
  const lines = [];
  const add = (kind, text) => lines.push({ at: Date.now() - begin, kind, text });
  const type = async (text) => {
    add("typed", `$ ${text}`);
    await sleep(600);
  };
  const run = async (command) => {
    await type(`ssh host "${command}"`);
    return await follow(host.spawnSsh("dev", command), (text) => add("said", text));
  };

  const build = `${program} --run --id build make`;
  await type(`ssh host "${build}"`);
  let seen = 0;
  const client = host.spawnSsh("dev", build);
  await follow(client, (text) => {
    add("said", text);
    if (/CC/.test(text) && ++seen === 3) client.kill("SIGKILL");
  });
  add("ours", "— the line is cut: the ssh client is killed —");
  await host.sleepUntilLoggedOut("dev");
  await sleep(14_000);
  add("ours", "— nobody is logged in for 14 s, on a host that kills what stays in a session —");
  await sleep(1200);
  await run(`${program} --list`);
  await sleep(800);
  const code = await run(`${program} --attach build`);
  await sleep(800);
  await type("echo $?");
  add("said", String(code));
  return lines;
}

/** Hands each line of a client's output on, of both its streams. Resolves to its exit code. */
function follow(client, take) {
  client.stdin.end();
  for (const stream of [client.stdout, client.stderr]) {
    let rest = "";
    stream.setEncoding("utf8").on("data", (chunk) => {
      const parts = (rest + chunk).replaceAll("\r", "").split("\n");
      rest = parts.pop();
      for (const part of parts) take(part);
    });
  }
  return new Promise((done) => client.once("close", (code) => done(code)));
}

function sleep(ms) {
  return new Promise((done) => setTimeout(done, ms));
}

/** Long lines go on in the next row; long pauses are short. */
function draw(lines) {
  const rows = [];
  let [time, before] = [500, 0];
  for (const { at, kind, text } of lines) {
    time += Math.min(at - before, maxPauseMs);
    before = at;
    for (let from = 0; from === 0 || from < text.length; from += columns)
      rows.push({ time, kind, text: text.slice(from, from + columns) });
  }
  const total = time + lingerMs;
  const height = top + rows.length * lineHeight + 14;
  const width = Math.round(left * 2 + columns * charWidth);
  const frames = [];
  const texts = rows.map(({ time, kind, text }, row) => {
    const y = top + row * lineHeight;
    const part = ((100 * time) / total).toFixed(2);
    frames.push(`@keyframes r${row}{0%,${part}%{opacity:0}${(Number(part) + 0.01).toFixed(2)}%,100%{opacity:1}}`);
    return `<text x="${left}" y="${y}" class="${kind}" style="animation:r${row} ${total}ms steps(1) infinite" xml:space="preserve">${escapeXml(text)}</text>`;
  });
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" role="img" aria-label="A command is run over ssh, the line is cut, and it is attached to again">
<style>rect{fill:#0d1117;stroke:#30363d}text{font:13px ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;fill:#c9d1d9}.typed{fill:#7ee787}.ours{fill:#8b949e;font-style:italic}
circle{fill:#30363d}${frames.join("\n")}
@media(prefers-reduced-motion){text{animation:none!important}}</style>
<rect x="0.5" y="0.5" width="${width - 1}" height="${height - 1}" rx="8"/><circle cx="20" cy="18" r="5"/><circle cx="38" cy="18" r="5"/><circle cx="56" cy="18" r="5"/>
${texts.join("\n")}
</svg>
`;
}

function escapeXml(text) {
  return text.replace(/[&<>]/g, (found) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;" })[found]);
}
