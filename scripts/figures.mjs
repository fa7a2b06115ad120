/**
 * The figures of docs/, as SVG: `node scripts/figures.mjs`
 *
 * Each is a list of shapes on a plane of 760 units: boxes, arrows and words, in colours that go with a light and a dark page.
 */

import { writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

const width = 760;
const style = `<style>
text{fill:#24292f;font:13px system-ui,sans-serif}.mono{font-family:ui-monospace,monospace;font-size:12px}.bold{font-weight:600}.faint{fill:#6e7781}
.good{fill:#1a7f37}.bad{fill:#cf222e}rect{fill:#f6f8fa;stroke:#8c959f}.g{fill:#dafbe1;stroke:#1a7f37}.b{fill:#ffebe9;stroke:#cf222e}.l{fill:#ddf4ff;stroke:#0969da}
.o{fill:none;stroke-dasharray:5 4}line,path{stroke:#57606a;fill:none}marker path{fill:#57606a;stroke:none}.cut{stroke:#cf222e;stroke-dasharray:4 3}
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.faint{fill:#8d96a0}.good{fill:#3fb950}.bad{fill:#f85149}rect{fill:#161b22;stroke:#6e7681}.g{fill:#12261e;stroke:#3fb950}
.b{fill:#2d1618;stroke:#f85149}.l{fill:#121d2f;stroke:#58a6ff}.o{fill:none}line,path{stroke:#8d96a0}marker path{fill:#8d96a0}.cut{stroke:#f85149}}</style>
<defs><marker id="to" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto-start-reverse"><path d="M0 0L8 4L0 8z"/></marker></defs>`;

const escapeXml = (text) => text.replace(/[&<>]/g, (found) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;" })[found]);

const words = (x, y, text, classes = "", anchor = "start") =>
  `<text x="${x}" y="${y}" class="${classes}" text-anchor="${anchor}">${escapeXml(text)}</text>`;
/** A box with lines of words in its middle; the first is bold. */
const box = (x, y, wide, high, lines, classes = "") => {
  const top = y + high / 2 - (lines.length - 1) * 8.5 + 4.5;
  return [
    `<rect x="${x}" y="${y}" width="${wide}" height="${high}" rx="6" class="${classes}"/>`,
    ...lines.map((line, at) => words(x + wide / 2, top + at * 17, line, at === 0 ? "bold" : "faint", "middle")),
  ].join("");
};
/** A bar in time, its name at its beginning. */
const bar = (x, y, wide, text, classes = "") =>
  `<rect x="${x}" y="${y}" width="${wide}" height="24" rx="4" class="${classes}"/>${words(x + 8, y + 16.5, text)}`;
const arrow = (x1, y1, x2, y2, both = false) =>
  `<line x1="${x1}" y1="${y1}" x2="${x2}" y2="${y2}" marker-end="url(#to)"${both ? ' marker-start="url(#to)"' : ""}/>`;
const cut = (x, y1, y2) => `<line class="cut" x1="${x}" y1="${y1}" x2="${x}" y2="${y2}"/>`;

/** Each figure: its height, what it shows to who cannot see it, and its shapes. */
const figures = {
  logout: [
    268,
    "What ends when a user logs out of a host that kills what stays in a session",
    words(12, 22, "A host with KillUserProcesses=yes, in time", "bold"),
    cut(330, 34, 240),
    cut(520, 34, 240),
    words(330, 256, "last logout", "bad", "middle"),
    words(520, 256, "10 s later (UserStopDelaySec=)", "bad", "middle"),
    bar(20, 42, 310, "session: your login over ssh, a scope of its own"),
    bar(50, 72, 280, "setsid, nohup, tmux: still in that scope", "b"),
    words(338, 89, "killed", "bad"),
    bar(20, 112, 500, "user manager (systemd --user), without lingering"),
    bar(50, 142, 470, "holdfast in a scope of its own under it", "b"),
    words(528, 159, "ends with it", "bad"),
    bar(20, 182, 720, "user manager, with lingering: it runs from boot on"),
    bar(50, 212, 690, "holdfast in a scope of its own under it, with its work", "g"),
  ],
  parts: [
    236,
    "A client reaches the daemon through ssh and a bridge; the daemon's processes stand on the host",
    words(12, 22, "One request, one byte of output", "bold"),
    `<rect x="212" y="40" width="536" height="184" rx="8" class="o"/>`,
    words(224, 58, "the host", "faint"),
    box(12, 84, 88, 48, ["client", "yours"], "l"),
    box(124, 84, 64, 48, ["ssh", ""]),
    box(232, 84, 96, 48, ["--bridge", "a session"]),
    box(386, 84, 116, 48, ["daemon", "in a scope"], "g"),
    box(560, 68, 80, 80, ["holder", "a small sh:", "pipes, exit"], "g"),
    box(664, 84, 72, 48, ["process", "make"], "g"),
    arrow(100, 108, 124, 108, true),
    arrow(188, 108, 232, 108, true),
    arrow(328, 108, 386, 108, true),
    arrow(502, 108, 560, 108, true),
    arrow(640, 108, 664, 108, true),
    words(357, 100, "socket", "faint mono", "middle"),
    words(531, 100, "FIFOs", "faint mono", "middle"),
    box(386, 168, 116, 42, ["spool", "output, on disk"]),
    arrow(444, 132, 444, 168),
    cut(210, 66, 214),
    words(222, 176, "a lost line, a logout:", "bad"),
    words(222, 194, "the bridge ends,", "bad"),
    words(222, 212, "nothing else does", "bad"),
    words(560, 176, "the daemon is killed:", "bad"),
    words(560, 194, "holder and process go on,", "bad"),
    words(560, 212, "the next daemon has them", "bad"),
  ],
  decision: [
    372,
    "How --serve chooses where the daemon is to live",
    words(12, 22, "What --serve asks, in this order", "bold"),
    box(20, 40, 330, 44, ["Does anything end what stays here?", "logind's policy, idle stop, the unit, the job"]),
    arrow(350, 62, 420, 62),
    words(385, 55, "no", "good", "middle"),
    box(420, 40, 320, 44, ["detached, where we are", "survives logout: yes"], "g"),
    arrow(185, 84, 185, 116),
    words(193, 105, "yes, or not to be known", "bad"),
    box(20, 116, 330, 44, ["Can a scope be made under the user manager?", "systemd-run --user --scope, within 5 s"]),
    arrow(350, 138, 420, 138),
    words(385, 131, "no", "bad", "middle"),
    box(420, 116, 320, 44, ["detached, with a warning", "until this session, unit or job ends"], "b"),
    arrow(185, 160, 185, 192),
    words(193, 181, "yes", "good"),
    box(20, 192, 330, 44, ["Does the user manager stay?", "lingering, or a stop delay that is infinite"]),
    arrow(350, 214, 420, 214),
    words(385, 207, "yes", "good", "middle"),
    box(420, 192, 320, 44, ["detached and in a scope", "survives logout: yes"], "g"),
    arrow(185, 236, 185, 268),
    words(193, 257, "no", "bad"),
    box(20, 268, 330, 44, ["Was --enable-linger given, and is it allowed?", "loginctl enable-linger"]),
    arrow(350, 290, 420, 290),
    words(385, 283, "no", "bad", "middle"),
    box(420, 268, 320, 44, ["a scope if logout kills here, else detached", "with a warning: until when it lives"], "b"),
    `<path d="M185 312V338H752V214H742" marker-end="url(#to)"/>`,
    words(193, 331, "yes: lingering is on, and the scope stays", "good"),
    words(
      20,
      362,
      "Then /proc/<pid>/cgroup is read: the verdict is where the daemon is, not where it was sent.",
      "faint",
    ),
  ],
  replay: [
    250,
    "What a client sees of a process whose line is cut and taken up again",
    words(12, 22, "seq and reattach, in time", "bold"),
    words(12, 66, "process", "bold"),
    words(12, 126, "client", "bold"),
    ...[1, 2, 3, 4, 5, 6, 7, 8, 9].map((seq) => box(58 + seq * 62, 46, 46, 30, [`${seq}`], seq === 9 ? "l" : "")),
    ...[1, 2, 3].map((seq) => arrow(81 + seq * 62, 76, 81 + seq * 62, 108)),
    ...[1, 2, 3].map((seq) => box(58 + seq * 62, 108, 46, 30, [`${seq}`], "g")),
    cut(300, 34, 166),
    cut(486, 34, 166),
    words(393, 100, "the line is lost", "bad", "middle"),
    words(393, 118, "output is kept: seq 4 to 6", "faint", "middle"),
    words(492, 100, "reattach {fromSeq: 3}", "mono"),
    ...[4, 5, 6].map((seq, at) => box(494 + at * 40, 108, 34, 30, [`${seq}`], "g")),
    ...[7, 8, 9].map((seq, at) => box(622 + at * 42, 108, 34, 30, [`${seq}`], seq === 9 ? "l" : "g")),
    words(554, 158, "replayed", "faint", "middle"),
    words(678, 158, "live", "faint", "middle"),
    words(12, 190, "Each message once, in order. What is no longer held is named:"),
    words(12, 210, "firstSeq is the first that is; firstSeq > fromSeq + 1 says exactly what is missing.", "mono"),
    words(12, 238, "The daemon may die and come back meanwhile: seq goes on. The last message is the exit.", "faint"),
  ],
};

/** @returns The text of each file of docs/ by its name. */
export function drawFigures() {
  return Object.entries(figures).map(([name, [height, title, ...shapes]]) => {
    const head = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" role="img" aria-label="${title}">`;
    return [`docs/${name}.svg`, `${head}\n${style}\n${shapes.join("\n")}\n</svg>\n`];
  });
}

// its own name, too: bundled into a test it is not what was run
if (process.argv[1]?.endsWith("figures.mjs") && process.argv[1] === fileURLToPath(import.meta.url)) {
  process.chdir(fileURLToPath(new URL("..", import.meta.url)));
  for (const [path, text] of drawFigures()) writeFileSync(path, text);
}
