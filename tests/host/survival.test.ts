// time limit: 240 s
/**
 * The main job: after `--stop && --serve` in one SSH session and its end, is the daemon alive exactly where --serve had said so?
 *
 * The invocations stand as existing clients send them, each in a session of its own; the truth is asked of /proc, 14 s after the last logout.
 */

import { suite } from "uvu";
import * as assert from "uvu/assert";
import { builtFile, frameOf, messagesIn, outcomeOf, request, sideBySide } from "../daemon.ts";
import type { Host } from "./host.ts";
import { requireHosts, withHost } from "./host.ts";
import { assertFate } from "./ways.ts";

requireHosts(2);

/** UserStopDelaySec= is 10 s: what ends with the user manager would be gone by then. */
const loggedOutMs = 14_000;

interface Cell {
  user: string;
  linger: boolean;
  enableLinger: boolean;
  /** What --serve must say. */
  says: RegExp;
  lives: boolean;
}

/** One user per cell: whatever one daemon leaves in a session keeps the user manager, and so the daemons of the others. */
function cellsOf(kill: boolean, polkit: boolean): Cell[] {
  return [false, true].flatMap((linger) =>
    [false, true].map((enableLinger) => {
      const lives = !kill || linger || (enableLinger && polkit);
      return {
        user: `u${linger ? "l" : "n"}${enableLinger ? "e" : "d"}`,
        linger,
        enableLinger,
        lives,
        says: lives ? /survives logout: yes\)/ : /survives logout: until about 10 s after your last session ends\)/,
      };
    }),
  );
}

async function runCell(host: Host, { user, enableLinger, says, lives }: Cell, label: string): Promise<void> {
  const [server, socket, token] = [`/home/${user}/server`, `/home/${user}/.run/rpc.sock`, `/home/${user}/token`];
  await host.copy(user, builtFile, server);
  await host.prepare(user);

  const started = await host.ssh(
    user,
    `'${server}' '--stop' '--socket' '${socket}' && '${server}' '--serve' '--socket' '${socket}' '--token-file' '${token}'${enableLinger ? " --enable-linger" : ""}`,
  );
  assert.is(started.code, 0, `${label}: ${started.stderr}`);
  assert.match(
    started.stdout,
    /^none 0\nRemote server listening on \/home\/\w+\/\.run\/rpc\.sock \(pid \d+, instance [0-9a-f]{32}, /,
    label,
  );
  assert.match(started.stdout, says, label);
  const instance = /instance ([0-9a-f]{32})/.exec(started.stdout)![1];
  assert.is(
    /warning/.test(started.stderr),
    !lives,
    `${label}: a warning where it will die, none where it lives: ${started.stderr}`,
  );
  if (!lives) assert.match(started.stderr, `loginctl enable-linger ${user}`);
  if (!lives && enableLinger) assert.match(started.stderr, /could not be switched on: Access denied/);

  await host.sleepUntilLoggedOut(user);
  await assertFate(host, socket, lives, loggedOutMs, `${label}: ${started.stdout}`);
  assert.is(
    host.sessions(user).filter(({ state }) => state !== "closing").length,
    0,
    `${label}: somebody is logged in`,
  );

  const bridged = await outcomeOf(
    host.spawnSsh(user, `'${server}' '--bridge' '--socket' '${socket}'`),
    frameOf(request("server.capabilities", {}, "secret")),
  );
  assert.is(bridged.code, 0, `${label}: ${bridged.stderr}`);
  const [answer] = messagesIn(bridged.stdout);
  assert.match(answer.result.instanceId, /^[0-9a-f]{32}$/);
  // where it died, the bridge has started another one
  assert.is(answer.result.instanceId === instance, lives, label);
}

const survival = suite("--serve predicts, and the kernel agrees");
const survivals = sideBySide(survival, 1); // eight logins at once are enough
for (const polkit of [true, false]) {
  survivals(
    `with ${polkit ? "" : "no "}polkit, killing off and on, lingering off and on, --enable-linger absent and given`,
    async () => {
      await Promise.all(
        [false, true].map((kill) => {
          const cells = cellsOf(kill, polkit);
          return withHost(
            {
              killUserProcesses: kill,
              polkit,
              users: cells.map(({ user, linger }) => (linger ? `${user}+linger` : user)),
            },
            (host) =>
              Promise.all(
                cells.map((cell) =>
                  runCell(
                    host,
                    cell,
                    `KillUserProcesses=${kill ? "yes" : "no"}, polkit ${polkit}, ${JSON.stringify(cell)}`,
                  ),
                ),
              ),
          );
        }),
      );
    },
  );
}

survival.run();
